"""The tier index: the first tier's record of the blobs in lower tiers.

Each blob in a lower tier has an *entry*, which names the tier, and two times. The blob *expires*
like any blob: it lives for the longest time requested, and `BlobStore.release` shortens that. Its
tier has *promised* to keep the object for some time; a promise is never shortened. The entry stays
until the promise ends, so that a sweep finds blobs that expired earlier.

An expired blob stays expired: every call treats it as missing until it is stored again, as
another version of the object with another entry. So a sweep that has seen a version, and has then
seen that nothing needs the blob, can safely delete that version at any time. A writer first takes
a hold, or at least a reservation, so that a sweep that sees what it writes finds the blob needed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from offload.digest import Digest, parse_digest
from offload.stores.capabilities import VersionedStore, blob_inspection_of
from offload.stores.checks import check_ttl
from offload.stores.memory import Entry, MemoryState, MemoryStore
from offload.stores.protocols import PUT, Parts, Store, SweepItem
from offload.stores.redis.blobs import BlobScripts, milliseconds
from offload.stores.redis.client import RedisClient, script
from offload.stores.redis.store import RedisStore

RESERVED = 3600.0
"""Maximum seconds that a reservation lasts."""


@dataclass(frozen=True)
class Location:
    """Where a blob in a lower tier is, and how long.

    Attributes:
        entry: a unique word, a space, and the tier's URL. No two entries are the same.
        promised: seconds for which the tier promises to keep the object.
        ttl: seconds until the blob expires; 0 if it has.
        needed: seconds until its last hold or reservation expires.
    """

    entry: str
    promised: float
    ttl: float
    needed: float

    @property
    def tier(self) -> str:
        return self.entry.partition(" ")[2]


class TierIndex(Protocol):
    """The record of which blobs are in which lower tier. Each call takes one round trip.

    Results include only blobs that aren't in the first tier itself, with their location, or None if
    they don't exist.
    """

    def hold(
        self, digests: Sequence[Digest], ttl: float, holder: str
    ) -> Mapping[Digest, Location | None]:
        """Hold blobs like `BlobStore.hold`, and extend the lives of those in lower tiers.

        The location of an expired blob is None.
        """

    def reserve(
        self, digests: Sequence[Digest], ttl: float, name: str
    ) -> Mapping[Digest, Location | None]:
        """Extend lives like `hold`, but hold only missing blobs.

        These holds are reservations: they end when the blobs are added under the same *name*, or
        after `RESERVED` seconds.
        """

    def add(
        self, promised: Mapping[Digest, float], entry: str, *, ttl: float, name: str
    ) -> Mapping[Digest, float]:
        """Record blobs that were just stored, and end the reservation named *name*.

        Lives that haven't ended, and promises of the same tier, are only extended.

        Args:
            promised: seconds for which the tier keeps each object.
            ttl: seconds that the blobs live.

        Returns the seconds of recorded promises that are longer than those given.
        """

    def extend(self, promised: Mapping[Digest, tuple[Location, float]]) -> set[Digest]:
        """Record longer promises for entries that haven't changed; return the other blobs."""

    def find(self, digests: Sequence[Digest]) -> Mapping[Digest, Location | None]:
        """Return the locations of blobs, including expired ones, without changing anything."""

    def forget(self, locations: Mapping[Digest, Location]) -> None:
        """Delete entries that haven't changed, and the lives of their blobs."""

    def digests(self) -> Iterator[list[Digest]]:
        """Yield the digests of all entries, about 1,000 at a time."""


def index_of(first: Store) -> TierIndex | None:
    """Return the tier index in *first*; None if it can't have one."""
    if isinstance(first, RedisStore):
        return RedisTierIndex(first.client)
    if isinstance(first, MemoryStore):
        return MemoryTierIndex(first.state)
    return None


class RedisTierIndex:
    """A tier index in Redis: a string per blob, beside its holds; see ``hold.lua``."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._scripts = BlobScripts(client)

    def hold(
        self, digests: Sequence[Digest], ttl: float, holder: str
    ) -> dict[Digest, Location | None]:
        return self._hold(digests, ttl, holder, "")

    def reserve(
        self, digests: Sequence[Digest], ttl: float, name: str
    ) -> dict[Digest, Location | None]:
        return self._hold(digests, ttl, name, milliseconds(min(ttl, RESERVED)))

    def _hold(
        self, digests: Sequence[Digest], ttl: float, name: str, reserved: int | str
    ) -> dict[Digest, Location | None]:
        life = milliseconds(ttl)
        answers = self._scripts.run("hold", digests, life, name, reserved)
        return {
            digest: None if answer == 0 else _location(answer[0], answer[1], life, life)
            for digest, answer in answers.items()
            if answer != 1
        }

    def add(
        self, promised: Mapping[Digest, float], entry: str, *, ttl: float, name: str
    ) -> dict[Digest, float]:
        asked = {digest: milliseconds(left) for digest, left in promised.items()}
        args = entry, milliseconds(ttl), name
        groups = self._scripts.groups(list(asked))
        calls = [(self._scripts.keys(g), (*args, *map(asked.__getitem__, g))) for g in groups]
        recorded = [each for answer in self._run("note", calls) for each in answer]
        return {
            digest: left / 1000
            for digest, left in zip(asked, recorded, strict=True)
            if left > asked[digest]
        }

    def extend(self, promised: Mapping[Digest, tuple[Location, float]]) -> set[Digest]:
        calls = []
        for group in self._scripts.groups(list(promised)):
            pairs = [promised[digest] for digest in group]
            args = [word for place, left in pairs for word in (place.entry, milliseconds(left))]
            calls.append(([self._scripts.location_key(digest) for digest in group], args))
        done = [each for answer in self._run("promise", calls) for each in answer]
        return {digest for digest, is_done in zip(promised, done, strict=True) if not is_done}

    def find(self, digests: Sequence[Digest]) -> dict[Digest, Location | None]:
        return {
            digest: None if answer == 0 else _location(*answer)
            for digest, answer in self._scripts.run("where", digests).items()
            if answer != 1
        }

    def forget(self, locations: Mapping[Digest, Location]) -> None:
        kinds = self._scripts.location_key, self._scripts.holds_key
        calls = [
            ([key(d) for d in group for key in kinds], [locations[d].entry for d in group])
            for group in self._scripts.groups(list(locations))
        ]
        self._run("forget", calls)

    def digests(self) -> Iterator[list[Digest]]:
        prefix = f"{self._client.prefix}:place:{{"
        for keys in self._client.keys(prefix):
            found = []
            for key in keys:
                with suppress(ValueError):  # others wrote it
                    found.append(parse_digest(key[len(prefix) : -1]))
            yield found

    def _run(self, name: str, calls: Sequence[tuple[Sequence[str], Sequence[object]]]) -> list[Any]:
        return self._client.run_script(script(name), calls)


def _location(entry: bytes, promised: float, ttl: float, needed: float) -> Location:
    left = math.inf if promised < 0 else promised / 1000  # an operator made it permanent
    return Location(entry.decode("utf-8", "replace"), left, ttl / 1000, needed / 1000)


class MemoryTierIndex:
    """A tier index in memory."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    def hold(
        self, digests: Sequence[Digest], ttl: float, holder: str
    ) -> dict[Digest, Location | None]:
        return self._hold(digests, ttl, holder, None)

    def reserve(
        self, digests: Sequence[Digest], ttl: float, name: str
    ) -> dict[Digest, Location | None]:
        return self._hold(digests, ttl, name, min(ttl, RESERVED))

    def _hold(
        self, digests: Sequence[Digest], ttl: float, holder: str, reserved: float | None
    ) -> dict[Digest, Location | None]:
        state, now = self._state, self._state.now()
        until = now + check_ttl(ttl)
        found: dict[Digest, Location | None] = {}
        with state.lock:
            for digest in digests:
                is_here = state.extend(digest, until)
                lives = not is_here and state.lives_in(digest) is not None
                location = self._location(digest) if lives else None
                if reserved is None:
                    state.add_hold(digest, holder, until)
                elif not is_here and not lives:
                    state.add_hold(digest, holder, now + reserved)
                if not is_here:
                    found[digest] = location
        return found

    def add(
        self, promised: Mapping[Digest, float], entry: str, *, ttl: float, name: str
    ) -> dict[Digest, float]:
        state, now = self._state, self._state.now()
        more: dict[Digest, float] = {}
        with state.lock:
            for digest, left in promised.items():
                state.holds.get(digest, {}).pop(name, None)
                old = state.entries.get(digest)
                new = state.entries[digest] = Entry(entry, now + check_ttl(left), now + ttl)
                if old is not None and min(old.life, old.until) > now:
                    new.life = max(new.life, old.life)
                    if old.tier == new.tier and old.until > new.until:
                        new.until = old.until
                        more[digest] = old.until - now
                state.check_at(new.until, digest)
        return more

    def extend(self, promised: Mapping[Digest, tuple[Location, float]]) -> set[Digest]:
        now = self._state.now()
        changed: set[Digest] = set()
        with self._state.lock:
            for digest, (location, left) in promised.items():
                entry = self._state.entry(digest)
                if entry is None or entry.text != location.entry:
                    changed.add(digest)
                else:
                    entry.until = max(entry.until, now + check_ttl(left))
        return changed

    def find(self, digests: Sequence[Digest]) -> dict[Digest, Location | None]:
        with self._state.lock:
            return {d: self._location(d) for d in digests if self._state.blob(d) is None}

    def forget(self, locations: Mapping[Digest, Location]) -> None:
        entries = self._state.entries
        with self._state.lock:
            for digest, location in locations.items():
                if digest in entries and entries[digest].text == location.entry:
                    del entries[digest]
                    # The entry's schedule would have dropped the holds: give them their own.
                    if holds := self._state.holds.get(digest):
                        self._state.check_at(max(holds.values()), digest)
            self._state.drop_expired()

    def digests(self) -> Iterator[list[Digest]]:
        with self._state.lock:
            found = list(self._state.entries)
        yield found

    def _location(self, digest: Digest) -> Location | None:
        entry = self._state.entry(digest)
        if entry is None:
            return None
        now = self._state.now()
        last = max((*self._state.holds.get(digest, {}).values(), entry.life))
        ttl, needed = max(entry.life - now, 0.0), max(last - now, 0.0)
        return Location(entry.text, entry.until - now, ttl, needed)


Clock = Callable[[], float]

AHEAD = 0.5
"""How much longer than needed a tier without versions is to keep blobs, as a share."""


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
    """Return the name of the tier at *url*, which doesn't depend on the options in the URL."""
    return url.partition("?")[0]


def sweep(index: TierIndex, tier: Tier, *, dry_run: bool) -> Iterator[SweepItem]:
    """Delete expired blobs from *tier*, unless *dry_run*, and yield them.

    Blobs with an entry are deleted if nothing needs them according to *index*; all others, and all
    blobs of a tier without versions, by age.
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
        # The order matters: if nothing needs a blob after its version was seen, nothing ever will
        # need that version.
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
