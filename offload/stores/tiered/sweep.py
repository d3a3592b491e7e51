"""Removing from a lower tier what nobody holds any more, and what has expired."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from offload.digest import Digest
from offload.stores.places import Place, Places, Version, Versioned
from offload.stores.protocols import SweepItem
from offload.stores.tiered.tier import Tier

__all__ = ("sweep",)


def sweep(places: Places, tier: Tier, *, dry_run: bool) -> Iterator[SweepItem]:
    """Remove from *tier*, unless *dry_run*, what *places* says that nobody needs, and what is
    not noted there and has expired; yield it.

    Where the tier has no versions, all goes by its age.
    """
    if tier.versions is None:
        yield from tier.store.sweep(dry_run=dry_run)
        return
    yield from _sweep_ended(places, tier, tier.versions, dry_run=dry_run)

    def noted(digests: Sequence[Digest]) -> set[Digest]:
        found = places.find(digests)
        return {d for d, place in found.items() if place and place.tier == tier.place}

    yield from tier.versions.sweep(noted, dry_run=dry_run)


def _sweep_ended(
    places: Places, tier: Tier, versions: Versioned, *, dry_run: bool
) -> Iterator[SweepItem]:
    for digests in places.noted():
        ended = _ended(places, tier, digests)
        # In this order: of what has ended after it was seen, that version is not needed again.
        seen = versions.versions(list(ended)) if ended else {}
        ended = _ended(places, tier, list(ended))
        found = {digest: seen[digest] for digest in ended if digest in seen}
        if not dry_run:
            gone = versions.discard(found) if found else set()
            changed = found.keys() - gone  # they are looked at again by the next sweep
            places.forget({d: place for d, place in ended.items() if d not in changed})
            found = {d: version for d, version in found.items() if d in gone}
        for digest, version in found.items():
            yield _swept(digest, version)


def _ended(places: Places, tier: Tier, digests: Sequence[Digest]) -> dict[Digest, Place]:
    return {
        digest: place
        for digest, place in places.find(digests).items()
        if place is not None and place.tier == tier.place and not place.held
    }


def _swept(digest: Digest, version: Version) -> SweepItem:
    return SweepItem("blob", digest, version.size, "nobody holds it any more")
