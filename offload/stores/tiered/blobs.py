"""Blobs over several tiers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby, islice

from offload.digest import Buffer, Digest
from offload.errors import BlobMissing, ConfigurationError, StoreError, StoreUnavailable
from offload.stores.capabilities import BlobPeek, HoldTracking, blob_inspection_of, hold_tracking_of
from offload.stores.checks import check_holder, check_limit, check_ttl
from offload.stores.places import Elsewhere, Place, Places, elsewhere
from offload.stores.protocols import PUT, BlobInfo, Parts, Store
from offload.stores.tiered.counts import TierCounts
from offload.stores.tiered.tier import Tier

__all__ = ("TieredBlobs",)

_TURNS = 10
_MANY = 1000  # blobs of a lower tier that the first is asked about at once


class TieredBlobs:
    """See `offload.stores.tiered`; *sizes* and *small* as in `TieredStore`."""

    tracks_holds = True

    def __init__(
        self,
        first: Store,
        places: Places,
        lower: Sequence[Tier],
        *,
        sizes: Sequence[int],
        small: int,
        url: str,
        counts: TierCounts,
    ) -> None:
        self._first = first
        self._places = places
        self._lower = lower
        self._tiers = {tier.place: tier for tier in lower}
        self._sizes = sizes
        self._small = small
        self._url = url
        self._counts = counts

    # -- keeping

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        check_ttl(ttl)
        check_holder(holder)
        with self._counts.errors():
            return self._missing(self._places.hold(digests, ttl, holder), ttl)

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        with self._counts.errors():
            self._first.blobs.release(digests, holder, grace)

    def holders(self, digest: Digest) -> Mapping[str, float]:
        return self._first.blobs.holders(digest)

    def count_holders(self, digests: Sequence[Digest]) -> list[int]:
        return _accounted(self._first).count_holders(digests)

    def longest_holds(self, digests: Sequence[Digest]) -> list[Mapping[str, float]]:
        return _accounted(self._first).longest_holds(digests)

    def held_by(self, digests: Sequence[Digest], name: str) -> set[Digest]:
        return _accounted(self._first).held_by(digests, name)

    def delete_unheld(self, digests: Sequence[Digest]) -> set[Digest]:
        return _accounted(self._first).delete_unheld(digests)

    def _missing(self, found: Mapping[Digest, Place | None], ttl: float) -> set[Digest]:
        """Return what of *found* is nowhere, once all others are promised for *ttl* seconds.

        What lies in a tier that is not configured counts as nowhere: it is stored again.
        """
        missing: set[Digest] = set()
        for _ in range(_TURNS):
            missing |= {d for d, place in found.items() if self._tier_of(place) is None}
            short = {
                digest: place
                for digest, place in found.items()
                if place is not None and digest not in missing and place.promised < ttl
            }
            changed: list[Digest] = []
            for tier in self._lower:
                some = {d: place for d, place in short.items() if place.tier == tier.place}
                if some:
                    changed += self._prolong(tier, some, ttl, missing)
            if not changed:
                return missing
            found = {
                digest: place if place is not None and place.life else None
                for digest, place in self._places.find(changed).items()
            }
        raise StoreUnavailable(
            f"{min(changed)} in {self._url} changed whenever it was looked at, {_TURNS} times",
            digest=min(changed),
            store=self._url,
        )

    def _prolong(
        self, tier: Tier, places: Mapping[Digest, Place], ttl: float, missing: set[Digest]
    ) -> set[Digest]:
        """Have *tier* promise more; return those that were stored anew meanwhile."""
        kept = tier.keep(list(places), ttl)
        lost = places.keys() - kept.keys()
        self._places.forget({digest: places[digest] for digest in lost})
        missing |= lost
        return self._places.promise({d: (places[d], left) for d, left in kept.items()})

    def _tier_of(self, place: Place | None) -> Tier | None:
        return None if place is None else self._tiers.get(place.tier)

    # -- storing

    def put(
        self, blobs: Mapping[Digest, Parts], ttl: float, *, value_size: int | None = None
    ) -> None:
        check_ttl(ttl)
        routed: dict[Tier | None, dict[Digest, Parts]] = {}
        for digest, parts in blobs.items():
            routed.setdefault(self._tier_for(parts, value_size), {})[digest] = parts
        first = routed.pop(None, {})
        with self._counts.errors():
            for tier, some in routed.items():
                if tier is not None:
                    self._put(tier, some, ttl)
            if first:
                with self._counts.uploading(self._first.url, first):
                    self._first.blobs.put(first, ttl, value_size=value_size)

    def _tier_for(self, parts: Parts, value_size: int | None) -> Tier | None:
        """Return where a blob goes; None is the first tier."""
        size = sum(memoryview(part).nbytes for part in parts)
        if size < self._small:
            return None
        below = sum((size if value_size is None else value_size) >= each for each in self._sizes)
        return self._lower[below - 1] if below else None

    def _put(self, tier: Tier, blobs: Mapping[Digest, Parts], ttl: float) -> None:
        name = f"@put:{os.urandom(8).hex()}"
        found = self._places.reserve(list(blobs), ttl, name)
        missing = self._missing(found, ttl)
        if not missing:
            return
        wanted = {d: parts for d, parts in blobs.items() if d in missing}
        with self._counts.uploading(tier.store.url, wanted):
            promised = tier.add(wanted, ttl)
        note = f"{os.urandom(8).hex()} {tier.place}"
        more = self._places.note(promised, note, life=ttl, name=name)
        if more:  # others stored these meanwhile, and were promised more
            tier.keep(list(more), max(more.values()))

    # -- reading

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        return self._get(list(digests), check_limit(limit))

    def _get(self, digests: list[Digest], limit: int) -> Iterator[Buffer]:
        with self._counts.errors():
            yield from self._get_all(digests, limit)

    def _get_all(self, digests: list[Digest], limit: int) -> Iterator[Buffer]:
        if len(digests) == 1:  # a value's root, most often in the first tier
            with suppress(BlobMissing, Elsewhere):
                yield from self._fetch(self._first, digests, limit)
                return
        found = self._places.find(digests)
        for store, run in groupby(digests, lambda digest: self._store_of(digest, found)):
            try:
                yield from self._run(store, list(run), limit)
            except BlobMissing:
                self._forget_lost(found)
                raise

    def _store_of(self, digest: Digest, found: Mapping[Digest, Place | None]) -> Store | None:
        """Return where a blob is noted to be; None if nowhere."""
        if digest not in found:
            return self._first
        place = found[digest]
        if place is None:
            return None
        if not place.life:
            raise self._gone(digest)
        tier = self._tiers.get(place.tier)
        if tier is None:
            raise elsewhere(digest, place.tier, self._url)
        return tier.store

    def _run(
        self,
        store: Store | None,
        digests: list[Digest],
        limit: int,
    ) -> Iterator[Buffer]:
        """Yield blobs that are noted to be in one store."""
        done = 0
        while done < len(digests):
            try:
                if store is not None:
                    for content in self._fetch(store, digests[done:], limit):
                        done += 1
                        yield content
                        del content  # nothing here keeps what the caller has finished with
                    return
            except (BlobMissing, Elsewhere):
                pass
            yield self._search(digests[done], store, limit)
            done += 1

    def _search(self, digest: Digest, store: Store | None, limit: int) -> Buffer:
        """Look for a blob in all tiers but *store*, where it is not."""
        for other in (self._first, *(tier.store for tier in self._lower)):
            if other is not store:
                with suppress(BlobMissing, Elsewhere):
                    (content,) = self._fetch(other, [digest], limit)
                    return content
        raise self._gone(digest)

    def _forget_lost(self, found: Mapping[Digest, Place | None]) -> None:
        """Drop the note of each blob that somebody removed from where it is noted to be.

        Otherwise the value's next publisher would deduplicate against what is gone.
        """
        for tier in self._lower:
            noted = {d: p for d, p in found.items() if p is not None and p.tier == tier.place}
            with suppress(StoreError):  # an outage: they are checked when they are read again
                there = tier.there(list(noted))
                self._places.forget({d: p for d, p in noted.items() if d not in there})

    def _fetch(self, store: Store, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        return self._counts.fetching(store.url, iter(store.blobs.get(digests, limit)))

    def _gone(self, digest: Digest) -> BlobMissing:
        return BlobMissing(
            f"{self._url} has no {digest}: it expired, or was deleted or evicted",
            digest=digest,
            store=self._url,
        )

    # -- all of them

    def delete(self, digests: Iterable[Digest]) -> None:
        asked = list(digests)
        self._first.blobs.delete(asked)
        found = self._places.find(asked)
        self._places.forget({d: place for d, place in found.items() if place is not None})
        for tier in self._lower:
            tier.store.blobs.delete(asked)

    def scan(self) -> Iterator[BlobInfo]:
        yield from self._first.blobs.scan()
        for tier in self._lower:
            infos = tier.store.blobs.scan()
            while some := {info.digest: info for info in islice(infos, _MANY)}:
                for digest, place in self._places.find(list(some)).items():
                    if place is None:  # the first tier lost its note
                        yield some[digest]
                    elif place.tier == tier.place and place.life:
                        yield replace(some[digest], ttl=place.life)

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        seen = dict(zip(digests, blob_inspection_of(self._first).peek(digests, size), strict=True))
        rest = [digest for digest, found in seen.items() if found is None]
        places = self._places.find(rest) if rest else {}
        for tier in self._lower:
            # What is noted nowhere may be in any: the first tier may have lost its notes.
            some = [d for d in rest if seen[d] is None and self._may_be_in(tier, places.get(d))]
            for digest, found in zip(
                some, blob_inspection_of(tier.store).peek(some, size), strict=True
            ):
                place = places.get(digest)
                seen[digest] = found if found is None or place is None else _until(found, place)
        return [seen[digest] for digest in digests]

    def _may_be_in(self, tier: Tier, place: Place | None) -> bool:
        return place is None or (place.tier == tier.place and place.life > 0)

    def find(self, begin: str) -> Iterator[Digest]:
        for store in (self._first, *(tier.store for tier in self._lower)):
            yield from blob_inspection_of(store).find(begin)


def _until(seen: BlobPeek, place: Place) -> BlobPeek:
    return replace(seen, ttl=place.life)


def _accounted(store: Store) -> HoldTracking:
    found = hold_tracking_of(store)
    if found is None:
        raise ConfigurationError(f"{store.url} cannot count who holds what", store=store.url)
    return found
