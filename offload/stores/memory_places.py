"""Who holds what and where it lies, for a store in memory."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from offload.digest import Digest
from offload.stores.capabilities import LISTED_HOLDS
from offload.stores.checks import check_ttl, names_holder
from offload.stores.places import RESERVED, Place
from offload.stores.processes import PerProcess

__all__ = ("Blob", "Clock", "Locks", "MemoryPlaces")

Clock = Callable[[], float]
Locks = PerProcess[threading.Lock]


@dataclass
class Blob:
    content: bytes
    until: float


@dataclass
class _Note:
    text: str
    until: float  # what its tier promised
    life: float = 0.0


class MemoryPlaces:
    """The account that a store in memory keeps of its *blobs*, and of those in lower tiers."""

    def __init__(self, clock: Clock, locks: Locks, blobs: dict[Digest, Blob]) -> None:
        self._clock = clock
        self._locks = locks
        self._blobs = blobs
        self._holds: dict[Digest, dict[str, float]] = {}
        self._notes: dict[Digest, _Note] = {}
        self._ends: list[tuple[float, Digest]] = []  # a heap: when to look at a digest again

    # -- holds

    def hold(
        self, digests: Sequence[Digest], ttl: float, holder: str
    ) -> dict[Digest, Place | None]:
        with self._locks.get():
            return self._held(digests, ttl, holder, None)

    def reserve(
        self, digests: Sequence[Digest], ttl: float, name: str
    ) -> dict[Digest, Place | None]:
        with self._locks.get():
            return self._held(digests, ttl, name, min(ttl, RESERVED))

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        """Do as `BlobStore.release`."""
        now = self._clock()
        with self._locks.get():
            for digest in digests:
                holds = self._holds.get(digest, {})
                if holds.pop(holder, now) <= now:
                    continue
                last = max(now + check_ttl(grace), *_of_holders(holds).values(), now)
                blob, note = self._blobs.get(digest), self._notes.get(digest)
                if blob is not None and blob.until > last:
                    blob.until = last
                    self.look_again(digest, last)
                if note is not None and note.life > last:
                    note.life = last

    def holders(self, digest: Digest) -> dict[str, float]:
        """Do as `BlobStore.holders`."""
        now = self._clock()
        with self._locks.get():
            holds = _of_holders(self._holds.get(digest, {}))
            return {holder: until - now for holder, until in holds.items() if until > now}

    def count_holders(self, digests: Sequence[Digest]) -> list[int]:
        """Do as `HoldTracking.count_holders`."""
        return [len(self.holders(digest)) for digest in digests]

    def longest_holds(self, digests: Sequence[Digest]) -> list[Mapping[str, float]]:
        """Do as `HoldTracking.longest_holds`."""
        return [
            dict(sorted(self.holders(digest).items(), key=lambda item: -item[1])[:LISTED_HOLDS])
            for digest in digests
        ]

    def held_by(self, digests: Sequence[Digest], name: str) -> set[Digest]:
        """Do as `HoldTracking.held_by`."""
        return {
            digest
            for digest in digests
            if any(names_holder(holder, name) for holder in self.holders(digest))
        }

    def delete_unheld(self, digests: Sequence[Digest]) -> set[Digest]:
        """Do as `HoldTracking.drop`."""
        now = self._clock()
        stay: set[Digest] = set()
        with self._locks.get():
            for digest in digests:
                note = self._notes.get(digest)
                if any(until > now for until in self._holds.get(digest, {}).values()):
                    stay.add(digest)
                else:
                    self._blobs.pop(digest, None)
                    if note is not None:
                        note.life = min(note.life, now)
        return stay

    # -- notes

    def note(
        self, promised: Mapping[Digest, float], note: str, *, life: float, name: str
    ) -> dict[Digest, float]:
        now = self._clock()
        more: dict[Digest, float] = {}
        with self._locks.get():
            for digest, left in promised.items():
                self._holds.get(digest, {}).pop(name, None)
                old = self._notes.get(digest)
                new = self._notes[digest] = _Note(note, now + check_ttl(left), now + life)
                if old is not None and min(old.life, old.until) > now:
                    new.life = max(new.life, old.life)
                    if _tier(old.text) == _tier(note) and old.until > new.until:
                        new.until = old.until
                        more[digest] = old.until - now
                self.look_again(digest, new.until)
        return more

    def promise(self, promised: Mapping[Digest, tuple[Place, float]]) -> set[Digest]:
        now = self._clock()
        changed: set[Digest] = set()
        with self._locks.get():
            for digest, (place, left) in promised.items():
                note = self._note_of(digest)
                if note is None or note.text != place.note:
                    changed.add(digest)
                else:
                    note.until = max(note.until, now + check_ttl(left))
        return changed

    def find(self, digests: Sequence[Digest]) -> dict[Digest, Place | None]:
        with self._locks.get():
            return {digest: self._place(digest) for digest in digests if not self.is_here(digest)}

    def forget(self, places: Mapping[Digest, Place]) -> None:
        with self._locks.get():
            for digest, place in places.items():
                note = self._notes.get(digest)
                if note is not None and note.text == place.note:
                    del self._notes[digest]

    def noted(self) -> Iterator[list[Digest]]:
        with self._locks.get():
            found = list(self._notes)
        yield found

    # -- for blobs; the lock is held by the caller

    def is_here(self, digest: Digest) -> bool:
        blob = self._blobs.get(digest)
        return blob is not None and blob.until > self._clock()

    def elsewhere(self, digest: Digest) -> Place | None:
        """Return where a blob lies and lives that is not here."""
        place = self._place(digest)
        return place if place is not None and place.life else None

    def extend(self, digest: Digest, until: float) -> bool:
        """Have a blob live until then; return whether it is here."""
        if not self.is_here(digest):
            return False
        blob = self._blobs[digest]
        blob.until = max(blob.until, until)
        return True

    def look_again(self, digest: Digest, at: float) -> None:
        """Have `drop_expired` look at a blob when that time has come."""
        heapq.heappush(self._ends, (at, digest))

    def drop_expired(self) -> None:
        """Drop all that has expired."""
        now = self._clock()
        while self._ends and self._ends[0][0] <= now:
            _, digest = heapq.heappop(self._ends)
            holds = self._holds.get(digest, {})
            for holder in [holder for holder, until in holds.items() if until <= now]:
                del holds[holder]
            if not holds:
                self._holds.pop(digest, None)
            if not self.is_here(digest):
                self._blobs.pop(digest, None)
            if self._note_of(digest) is None:
                self._notes.pop(digest, None)
            ends = list(holds.values())
            ends += [
                each.until for each in (self._blobs.get(digest), self._notes.get(digest)) if each
            ]
            if ends:
                self.look_again(digest, max(ends))

    # --

    def _held(
        self, digests: Sequence[Digest], ttl: float, holder: str, reserved: float | None
    ) -> dict[Digest, Place | None]:
        now = self._clock()
        until = now + check_ttl(ttl)
        found: dict[Digest, Place | None] = {}
        for digest in digests:
            here = self.extend(digest, until)
            place = None if here else self.elsewhere(digest)
            if place is not None:
                note = self._notes[digest]
                note.life = max(note.life, until)
            if reserved is None:
                self._add_hold(digest, holder, until)
            elif not here and place is None:
                self._add_hold(digest, holder, now + reserved)
            if not here:
                found[digest] = place
        return found

    def _add_hold(self, digest: Digest, holder: str, until: float) -> None:
        holds = self._holds.setdefault(digest, {})
        if not holds:
            self.look_again(digest, until)
        holds[holder] = max(holds.get(holder, until), until)

    def _note_of(self, digest: Digest) -> _Note | None:
        note = self._notes.get(digest)
        return note if note is not None and note.until > self._clock() else None

    def _place(self, digest: Digest) -> Place | None:
        note = self._note_of(digest)
        if note is None:
            return None
        now = self._clock()
        last = max((*self._holds.get(digest, {}).values(), note.life))
        return Place(note.text, note.until - now, max(note.life - now, 0.0), max(last - now, 0.0))


def _of_holders(holds: Mapping[str, float]) -> dict[str, float]:
    """Leave out the names of those who are about to store a blob."""
    return {holder: until for holder, until in holds.items() if not holder.startswith("@")}


def _tier(note: str) -> str:
    return note.partition(" ")[2]
