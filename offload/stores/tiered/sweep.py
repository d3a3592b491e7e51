"""Lower tiers: what they keep for how long, and what a sweep deletes from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from offload.digest import Digest
from offload.stores.capabilities import VersionedStore, blob_inspection_of
from offload.stores.protocols import PUT, Parts, Store, SweepItem
from offload.stores.tiered.index import Location, TierIndex

Clock = Callable[[], float]

AHEAD = 0.5
"""Extra share of life that a tier without versions is asked for."""


class Tier:
    """A store below the first.

    Attributes:
        name: what the index calls it.
        versions: its versioned blobs; None if its blobs expire only by age.
    """

    def __init__(self, store: Store, clock: Clock = time.monotonic) -> None:
        self.store = store
        self.name = tier_name(store.url)
        self.versioned = store if isinstance(store, VersionedStore) else None
        self.versions = self.versioned.versions if self.versioned is not None else None
        self._clock = clock

    def put(self, blobs: Mapping[Digest, Parts], ttl: float) -> dict[Digest, float]:
        """Store blobs for at least *ttl* seconds; return how long each is kept from now.

        If the tier has versions, each is a new one.
        """
        began = self._clock()
        if self.versions is not None:
            kept = dict(self.versions.replace(blobs, ttl))
        else:
            promised = ttl * (1 + AHEAD)
            self.store.blobs.put(blobs, promised)
            kept = dict.fromkeys(blobs, promised)
        return self._from_now(kept, began)

    def extend(self, digests: Sequence[Digest], ttl: float) -> dict[Digest, float]:
        """Keep existing blobs at least *ttl* seconds; return how long each is kept from now."""
        began = self._clock()
        if self.versions is not None:
            kept = dict(self.versions.extend(digests, ttl))
        else:
            promised = ttl * (1 + AHEAD)
            missing = self.store.blobs.hold(digests, promised, PUT)
            kept = {digest: promised for digest in digests if digest not in missing}
        return self._from_now(kept, began)

    def existing(self, digests: Sequence[Digest]) -> Collection[Digest]:
        """Return which of these blobs exist."""
        if self.versions is not None:
            return self.versions.versions(digests).keys()
        peeks = blob_inspection_of(self.store).peek(digests, 1)
        return {digest for digest, peek in zip(digests, peeks, strict=True) if peek is not None}

    def _from_now(self, kept: Mapping[Digest, float], began: float) -> dict[Digest, float]:
        """Return the seconds that certainly remain of each promise made since *began*."""
        took = self._clock() - began
        return {digest: max(left - took, 0.001) for digest, left in kept.items()}


def tier_name(url: str) -> str:
    """Return the name of the tier at *url*: the same whatever options it is opened with."""
    return url.partition("?")[0]


def sweep(index: TierIndex, tier: Tier, *, dry_run: bool) -> Iterator[SweepItem]:
    """Delete expired blobs from *tier*, unless *dry_run*, and yield them.

    Blobs with an entry expire when nothing needs them according to *index*, all others by
    their age. In a tier without versions, all expire by their age.
    """
    if tier.versioned is None:
        yield from tier.store.sweep(dry_run=dry_run)
        return
    yield from _sweep_unneeded(index, tier, dry_run=dry_run)

    def known(digests: Sequence[Digest]) -> set[Digest]:
        found = index.find(digests)
        return {d for d, place in found.items() if place and place.tier == tier.name}

    yield from tier.versioned.sweep(dry_run=dry_run, known=known)


def _sweep_unneeded(index: TierIndex, tier: Tier, *, dry_run: bool) -> Iterator[SweepItem]:
    versions = tier.versions
    if versions is None:
        return
    for digests in index.digests():
        unneeded = _unneeded(index, tier, digests)
        # In this order: a blob that is unneeded after its version was seen never needs it again.
        seen = versions.versions(list(unneeded)) if unneeded else {}
        unneeded = _unneeded(index, tier, list(unneeded))
        found = {digest: seen[digest] for digest in unneeded if digest in seen}
        if not dry_run:
            gone = versions.delete_versions(found) if found else set()
            changed = found.keys() - gone  # the next sweep checks them again
            index.forget({d: place for d, place in unneeded.items() if d not in changed})
            found = {d: version for d, version in found.items() if d in gone}
        for digest, version in found.items():
            yield SweepItem("blob", digest, version.size, "it has no holds left")


def _unneeded(index: TierIndex, tier: Tier, digests: Sequence[Digest]) -> dict[Digest, Location]:
    return {
        digest: location
        for digest, location in index.find(digests).items()
        if location is not None and location.tier == tier.name and not location.needed
    }
