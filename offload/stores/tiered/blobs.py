"""Blobs in several tiers, and counters of what each tier does."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import groupby, islice

from offload.digest import Buffer, Digest
from offload.errors import BlobMissing, ConfigurationError, IntegrityError, StoreError
from offload.stores.capabilities import (
    BlobPeek,
    DefersReleases,
    HoldsAndPuts,
    HoldTracking,
    StoreCounters,
    Wanted,
    blob_inspection_of,
    hold_tracking_of,
)
from offload.stores.checks import (
    TierNotConfigured,
    check_holder,
    check_limit,
    check_ttl,
    contention_error,
    missing_error,
    tier_not_configured,
)
from offload.stores.protocols import PUT, BlobInfo, Parts, Store, size_of
from offload.stores.tiered.index import Location, Tier, TierIndex

_TURNS = 10  # attempts to extend blobs that other processes keep storing again
_MANY = 1000  # blobs of a lower tier to look up in the index at a time


class TieredBlobs:
    """Blobs in several tiers; see `offload.stores.tiered`, and `TieredStore` for the arguments."""

    tracks_holds = True

    def __init__(
        self,
        first: Store,
        index: TierIndex,
        lower: Sequence[Tier],
        *,
        sizes: Sequence[int],
        small: int,
        url: str,
        counts: TierCounts,
    ) -> None:
        self._first = first
        self._combining = first.blobs if isinstance(first.blobs, HoldsAndPuts) else None
        self._deferring = first.blobs if isinstance(first.blobs, DefersReleases) else None
        self._index = index
        self._lower = lower
        self._tiers = {tier.name: tier for tier in lower}
        self._sizes = sizes
        self._small = small
        self._url = url
        self._counts = counts

    # -- holding

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        ttl = check_ttl(ttl)
        check_holder(holder)
        with self._counts.errors():
            return self._missing(self._index.hold(digests, ttl, holder), ttl)

    def hold_and_put(self, blobs: Mapping[Digest, Wanted], holder: str) -> set[Digest]:
        """See `HoldsAndPuts`. Blobs that belong to a lower tier take more round trips."""
        combining = self._combining
        here: dict[Digest, Wanted] = {}
        rest: dict[float, dict[Digest, Wanted]] = {}
        for digest, wanted in blobs.items():
            if combining is not None and self._is_first(wanted):
                here[digest] = wanted
            else:
                rest.setdefault(wanted.ttl, {})[digest] = wanted
        missing: set[Digest] = set()
        if here and combining is not None:
            with self._counts.errors():
                started = time.perf_counter()
                missing = combining.hold_and_put(here, holder)
                stored = {digest: here[digest].parts or () for digest in missing}
                self._counts.uploaded(self._first.url, stored, time.perf_counter() - started)
        for ttl, some in rest.items():
            lost = self.hold(list(some), ttl, holder)
            missing |= lost
            for digest in lost:
                parts = some[digest].parts
                if parts is not None:
                    self.put({digest: parts}, ttl, value_size=some[digest].value_size)
        return missing

    def _is_first(self, wanted: Wanted) -> bool:
        """Return whether a blob belongs to the first tier; without its content, that is unknown."""
        return wanted.parts is not None and not self._tier_for(wanted.parts, wanted.value_size)

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        with self._counts.errors():
            self._first.blobs.release(digests, holder, grace)

    def release_later(self, digests: Sequence[Digest], holder: str, grace: float) -> bool:
        deferring = self._deferring
        return deferring is not None and deferring.release_later(digests, holder, grace)

    def release_deferred(self) -> int:
        if self._deferring is None:
            return 0
        with self._counts.errors():
            return self._deferring.release_deferred()

    def holders(self, digest: Digest) -> Mapping[str, float]:
        return self._first.blobs.holders(digest)

    def count_holders(self, digests: Sequence[Digest]) -> list[int]:
        return self._holds().count_holders(digests)

    def longest_holds(self, digests: Sequence[Digest]) -> list[Mapping[str, float]]:
        return self._holds().longest_holds(digests)

    def held_by(self, digests: Sequence[Digest], name: str) -> set[Digest]:
        return self._holds().held_by(digests, name)

    def long_holds(self, least: float) -> Iterator[tuple[Digest, str, float]]:
        return self._holds().long_holds(least)

    def delete_unheld(self, digests: Sequence[Digest]) -> set[Digest]:
        return self._holds().delete_unheld(digests)

    def _holds(self) -> HoldTracking:
        found = hold_tracking_of(self._first)
        if found is None:
            url = self._first.url
            raise ConfigurationError(f"{url} doesn't track holds", store=url)
        return found

    def _missing(self, found: Mapping[Digest, Location | None], ttl: float) -> set[Digest]:
        """Return the blobs in *found* that don't exist, after extending the others' promises.

        A blob in a tier that isn't configured counts as missing, so it is stored again.
        """
        missing: set[Digest] = set()
        for _ in range(_TURNS):
            missing |= {d for d, at in found.items() if at is None or at.tier not in self._tiers}
            short = {
                digest: location
                for digest, location in found.items()
                if location is not None and digest not in missing and location.promised < ttl
            }
            changed: list[Digest] = []
            for tier in self._lower:
                some = {d: location for d, location in short.items() if location.tier == tier.name}
                if some:
                    changed += self._extend(tier, some, ttl, missing)
            if not changed:
                return missing
            found = {
                digest: location if location is not None and location.ttl else None
                for digest, location in self._index.find(changed).items()
            }
        raise contention_error(min(changed), self._url, _TURNS)

    def _extend(
        self, tier: Tier, locations: Mapping[Digest, Location], ttl: float, missing: set[Digest]
    ) -> set[Digest]:
        """Extend the promises of *tier*; return the blobs that were stored again meanwhile.

        Add missing blobs to *missing*.
        """
        kept = tier.extend(list(locations), ttl)
        lost = locations.keys() - kept.keys()
        self._index.forget({digest: locations[digest] for digest in lost})
        missing |= lost
        return self._index.extend({d: (locations[d], left) for d, left in kept.items()})

    # -- storing

    def put(
        self, blobs: Mapping[Digest, Parts], ttl: float, *, value_size: int | None = None
    ) -> None:
        ttl = check_ttl(ttl)
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
        """Return the lower tier that a blob belongs to; None if it belongs to the first tier."""
        size = size_of(parts)
        if size < self._small:
            return None
        below = sum((size if value_size is None else value_size) >= each for each in self._sizes)
        return self._lower[below - 1] if below else None

    def _put(self, tier: Tier, blobs: Mapping[Digest, Parts], ttl: float) -> None:
        name = f"@put:{os.urandom(8).hex()}"
        found = self._index.reserve(list(blobs), ttl, name)
        missing = self._missing(found, ttl)
        if not missing:
            return
        wanted = {d: parts for d, parts in blobs.items() if d in missing}
        with self._counts.uploading(tier.store.url, wanted):
            promised = tier.put(wanted, ttl)
        entry = f"{os.urandom(8).hex()} {tier.name}"
        more = self._index.add(promised, entry, ttl=ttl, name=name)
        if more:  # other writers stored these meanwhile, with longer promises
            tier.extend(list(more), max(more.values()))

    # -- reading

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        return self._get(list(digests), check_limit(limit))

    def _get(self, digests: list[Digest], limit: int) -> Iterator[Buffer]:
        with self._counts.errors():
            if len(digests) == 1:  # usually a value's root, which is in the first tier
                with suppress(BlobMissing, TierNotConfigured):
                    yield from self._fetch(self._first, digests, limit)
                    return
            found = self._index.find(digests)
            for store, run in groupby(digests, lambda digest: self._store_of(digest, found)):
                try:
                    yield from self._fetch_or_search(store, list(run), limit)
                except BlobMissing:
                    self._forget_lost(found)
                    raise

    def _store_of(self, digest: Digest, found: Mapping[Digest, Location | None]) -> Store | None:
        """Return the store in which a blob is according to the index; None if it has no entry."""
        if digest not in found:
            return self._first
        location = found[digest]
        if location is None:
            return None
        if not location.ttl:
            raise self._missing_error(digest)
        tier = self._tiers.get(location.tier)
        if tier is None:
            raise tier_not_configured(digest, location.tier, self._url)
        return tier.store

    def _fetch_or_search(
        self, store: Store | None, digests: list[Digest], limit: int
    ) -> Iterator[Buffer]:
        """Yield blobs from *store*; search all tiers for those that aren't there."""
        done = 0
        while done < len(digests):
            try:
                if store is not None:
                    for content in self._fetch(store, digests[done:], limit):
                        done += 1
                        yield content
                        del content  # don't keep a reference to what the caller no longer needs
                    return
            except (BlobMissing, TierNotConfigured):
                pass
            yield self._search(digests[done], store, limit)
            done += 1

    def _search(self, digest: Digest, store: Store | None, limit: int) -> Buffer:
        """Return a blob from any tier but *store*."""
        for other in (self._first, *(tier.store for tier in self._lower)):
            if other is not store:
                with suppress(BlobMissing, TierNotConfigured):
                    (content,) = self._fetch(other, [digest], limit)
                    return content
        raise self._missing_error(digest)

    def _forget_lost(self, found: Mapping[Digest, Location | None]) -> None:
        """Remove the entries of blobs that were deleted from their tier.

        Otherwise the next publisher of the value would assume that they exist.
        """
        for tier in self._lower:
            some = {d: at for d, at in found.items() if at is not None and at.tier == tier.name}
            with suppress(StoreError):  # during an outage, skip this: the next read checks again
                existing = tier.existing(list(some))
                self._index.forget({d: at for d, at in some.items() if d not in existing})

    def _fetch(self, store: Store, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        return self._counts.fetching(store.url, iter(store.blobs.get(digests, limit)))

    def _missing_error(self, digest: Digest) -> BlobMissing:
        return missing_error(digest, self._url, "it expired, or was deleted or evicted")

    # -- deleting and listing

    def delete(self, digests: Iterable[Digest]) -> None:
        asked = list(digests)
        self._first.blobs.delete(asked)
        found = self._index.find(asked)
        self._index.forget({d: at for d, at in found.items() if at is not None})
        for tier in self._lower:
            tier.store.blobs.delete(asked)

    def scan(self) -> Iterator[BlobInfo]:
        yield from self._first.blobs.scan()
        for tier in self._lower:
            infos = tier.store.blobs.scan()
            while some := {info.digest: info for info in islice(infos, _MANY)}:
                for digest, location in self._index.find(list(some)).items():
                    if location is None:  # the index has lost its entry
                        yield some[digest]
                    elif location.tier == tier.name and location.ttl:
                        yield replace(some[digest], ttl=location.ttl)

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        peeks = blob_inspection_of(self._first).peek(digests, size)
        found = dict(zip(digests, peeks, strict=True))
        rest = [digest for digest, peek in found.items() if peek is None]
        locations = self._index.find(rest) if rest else {}

        def may_be_in(tier: Tier, location: Location | None) -> bool:
            # The index may have lost its entry.
            return location is None or (location.tier == tier.name and location.ttl > 0)

        for tier in self._lower:
            some = [d for d in rest if found[d] is None and may_be_in(tier, locations.get(d))]
            peeks = blob_inspection_of(tier.store).peek(some, size)
            for digest, peek in zip(some, peeks, strict=True):
                location = locations.get(digest)
                if peek is not None and location is not None:
                    found[digest] = replace(peek, ttl=location.ttl)
                else:
                    found[digest] = peek
        return [found[digest] for digest in digests]

    def find(self, prefix: str) -> Iterator[Digest]:
        for store in (self._first, *(tier.store for tier in self._lower)):
            yield from blob_inspection_of(store).find(prefix)


class TierCounts:
    """Counts blobs, bytes, times, and errors of each tier by its URL, once `counters` is set."""

    def __init__(self, urls: Collection[str]) -> None:
        self._urls = urls
        self.counters: StoreCounters | None = None

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Count errors of a tier in this block, except missing blobs."""
        try:
            yield
        except (BlobMissing, TierNotConfigured, IntegrityError):
            raise
        except StoreError as exc:
            if self.counters is not None and exc.store and exc.store in self._urls:
                self.counters.of_store(exc.store, calls_failed=1)
            raise

    @contextmanager
    def uploading(self, url: str, blobs: Mapping[Digest, Parts]) -> Iterator[None]:
        """Count the blobs that this block writes."""
        started = time.perf_counter()
        yield
        self.uploaded(url, blobs, time.perf_counter() - started)

    def uploaded(self, url: str, blobs: Mapping[Digest, Parts], took: float) -> None:
        """Count blobs that were written in *took* seconds."""
        if self.counters is not None and blobs:
            size = sum(map(size_of, blobs.values()))
            self.counters.of_store(url, blobs_uploaded=len(blobs), bytes_stored=size)
            self.counters.took("upload", took, store=url)

    def fetching(self, url: str, contents: Iterator[Buffer]) -> Iterator[Buffer]:
        """Yield and count blobs that are read."""
        number = size = 0
        took = 0.0
        try:
            while True:
                started = time.perf_counter()
                content = next(contents, None)
                took += time.perf_counter() - started
                if content is None:
                    return
                number += 1
                size += memoryview(content).nbytes
                yield content
                del content  # don't keep a reference to what the caller no longer needs
        finally:
            if self.counters is not None and number:
                self.counters.of_store(url, blobs_fetched=number, bytes_fetched=size)
                self.counters.took("fetch", took, store=url)
