"""A store in this process's memory: for tests, eager mode, and one-process workers.

Its content is lost when the process ends, and is invisible to other processes. A forked child
continues with its own copy.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from offload.digest import Buffer, Digest
from offload.stores.capabilities import LISTED_HOLDS, BlobPeek
from offload.stores.checks import (
    check_holder,
    check_limit,
    check_name,
    check_owner,
    check_ttl,
    check_value,
    missing_error,
    names_holder,
    size_error,
    tier_not_configured,
)
from offload.stores.processes import PerProcess
from offload.stores.protocols import PUT, BlobInfo, LeaseInfo, Parts, SweepItem
from offload.stores.sums import MemorySums
from offload.stores.url import StoreURL

Clock = Callable[[], float]


@dataclass
class _Blob:
    content: bytes
    until: float


@dataclass
class Entry:
    """A tier index's entry for a blob in a lower tier.

    Attributes:
        text: a unique word, a space, and the tier's URL.
        until: when the tier's promise ends, by the store's clock.
        life: when the blob expires, by the store's clock.
    """

    text: str
    until: float
    life: float

    @property
    def tier(self) -> str:
        return self.text.partition(" ")[2]


class MemoryState:
    """Blobs, holds, and entries of a tier index. Callers must hold the lock.

    A heap schedules when to check a digest for something that has expired.
    """

    def __init__(self, clock: Clock) -> None:
        self.now = clock
        self._locks = PerProcess(threading.Lock)
        self.blobs: dict[Digest, _Blob] = {}
        self.holds: dict[Digest, dict[str, float]] = {}
        self.entries: dict[Digest, Entry] = {}
        self._schedule: list[tuple[float, Digest]] = []

    @property
    def lock(self) -> threading.Lock:
        """The lock of this process."""
        return self._locks.get()

    def blob(self, digest: Digest) -> _Blob | None:
        """Return a blob; None if it doesn't exist or has expired."""
        blob = self.blobs.get(digest)
        return blob if blob is not None and blob.until > self.now() else None

    def entry(self, digest: Digest) -> Entry | None:
        """Return a blob's index entry; None if its tier no longer promises to keep the blob."""
        entry = self.entries.get(digest)
        return entry if entry is not None and entry.until > self.now() else None

    def lives_in(self, digest: Digest) -> Entry | None:
        """Return the entry of a live blob in a lower tier; None if it isn't in one."""
        entry = self.entry(digest)
        return entry if entry is not None and entry.life > self.now() else None

    def extend(self, digest: Digest, until: float) -> bool:
        """Extend a blob's life, here or in a lower tier; return whether it is here."""
        blob = self.blob(digest)
        if blob is not None:
            blob.until = max(blob.until, until)
            return True
        entry = self.lives_in(digest)
        if entry is not None:
            entry.life = max(entry.life, until)
        return False

    def add_hold(self, digest: Digest, holder: str, until: float) -> None:
        holds = self.holds.setdefault(digest, {})
        if not holds:
            self.check_at(until, digest)
        holds[holder] = max(holds.get(holder, until), until)

    def holders(self, digest: Digest) -> dict[str, float]:
        """Return holders and when their holds end, except writers that are storing the blob."""
        now = self.now()
        holds = self.holds.get(digest, {})
        return {h: until for h, until in holds.items() if until > now and not h.startswith("@")}

    def check_at(self, moment: float, digest: Digest) -> None:
        """Schedule a digest for `drop_expired`."""
        heapq.heappush(self._schedule, (moment, digest))

    def drop_expired(self) -> None:
        """Drop all blobs, holds, and entries that have expired."""
        now = self.now()
        while self._schedule and self._schedule[0][0] <= now:
            _, digest = heapq.heappop(self._schedule)
            holds = self.holds.get(digest, {})
            for holder in [holder for holder, until in holds.items() if until <= now]:
                del holds[holder]
            if not holds:
                self.holds.pop(digest, None)
            if self.blob(digest) is None:
                self.blobs.pop(digest, None)
            if self.entry(digest) is None:
                self.entries.pop(digest, None)
            left = [each.until for each in (self.blob(digest), self.entry(digest)) if each]
            if ends := [*holds.values(), *left]:
                self.check_at(max(ends), digest)


class MemoryStore:
    """A store in memory.

    Args:
        name: identifies it in its URL.
        clock: returns seconds; determines what has expired.
    """

    def __init__(self, name: str = "", *, clock: Clock = time.monotonic) -> None:
        self.url = f"memory://{name}"
        self.state = MemoryState(clock)
        self.blobs = MemoryBlobs(self.url, self.state)
        self.pointers = MemoryPointers()
        self.leases = MemoryLeases(clock)
        self.sums = MemorySums()

    def sweep(self, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Delete expired blobs, unless *dry_run*; yield them."""
        state = self.state
        with state.lock:
            found = [
                SweepItem("blob", digest, len(blob.content), "expired")
                for digest, blob in state.blobs.items()
                if blob.until <= state.now()
            ]
            if not dry_run:
                state.drop_expired()
        return iter(found)

    def close(self) -> None:
        """Do nothing: there are no connections, and the content stays."""


_stores: dict[str, MemoryStore] = {}


def open_memory(url: StoreURL) -> MemoryStore:
    """Open ``memory://name``; within a process, the same name is the same store."""
    name = ",".join(host for host, _ in url.hosts) + url.path
    return _stores.setdefault(name, MemoryStore(name))


class MemoryBlobs:
    """Blobs in a dict; every `put` drops expired ones."""

    tracks_holds = True

    def __init__(self, url: str, state: MemoryState) -> None:
        self._url = url
        self._state = state

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        check_holder(holder)
        until = self._state.now() + check_ttl(ttl)
        missing: set[Digest] = set()
        with self._state.lock:
            for digest in digests:
                if not self._state.extend(digest, until):
                    missing.add(digest)
                self._state.add_hold(digest, holder, until)
        return missing

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        check_holder(holder)
        state, now = self._state, self._state.now()
        with state.lock:
            for digest in digests:
                if state.holds.get(digest, {}).pop(holder, now) <= now:
                    continue
                last = max(now + check_ttl(grace), *state.holders(digest).values(), now)
                blob, entry = state.blobs.get(digest), state.entries.get(digest)
                if blob is not None and blob.until > last:
                    blob.until = last
                    state.check_at(last, digest)
                if entry is not None:
                    entry.life = min(entry.life, last)

    def holders(self, digest: Digest) -> Mapping[str, float]:
        with self._state.lock:
            now = self._state.now()
            return {h: until - now for h, until in self._state.holders(digest).items()}

    def count_holders(self, digests: Sequence[Digest]) -> list[int]:
        return [len(self.holders(digest)) for digest in digests]

    def longest_holds(self, digests: Sequence[Digest]) -> list[Mapping[str, float]]:
        return [
            dict(sorted(self.holders(d).items(), key=lambda item: -item[1])[:LISTED_HOLDS])
            for d in digests
        ]

    def held_by(self, digests: Sequence[Digest], name: str) -> set[Digest]:
        return {d for d in digests if any(names_holder(h, name) for h in self.holders(d))}

    def long_holds(self, least: float) -> Iterator[tuple[Digest, str, float]]:
        with self._state.lock:
            now, digests = self._state.now(), list(self._state.holds)
            found = [
                (digest, holder, until - now)
                for digest in digests
                for holder, until in self._state.holders(digest).items()
                if until - now >= least
            ]
        return iter(found)

    def delete_unheld(self, digests: Sequence[Digest]) -> set[Digest]:
        state, now = self._state, self._state.now()
        stay: set[Digest] = set()
        with state.lock:
            for digest in digests:
                if any(until > now for until in state.holds.get(digest, {}).values()):
                    stay.add(digest)
                    continue
                state.blobs.pop(digest, None)
                if digest in state.entries:
                    state.entries[digest].life = min(state.entries[digest].life, now)
        return stay

    def put(
        self, blobs: Mapping[Digest, Parts], ttl: float, *, value_size: int | None = None
    ) -> None:
        until = self._state.now() + check_ttl(ttl)
        contents = {digest: b"".join(parts) for digest, parts in blobs.items()}
        with self._state.lock:
            for digest, content in contents.items():
                blob = self._state.blob(digest)
                if blob is not None:
                    blob.until = max(blob.until, until)
                else:
                    self._state.blobs[digest] = _Blob(content, until)
                    self._state.check_at(until, digest)
            self._state.drop_expired()

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        check_limit(limit)
        return (self._get(digest, limit) for digest in digests)

    def _get(self, digest: Digest, limit: int) -> Buffer:
        with self._state.lock:
            blob, entry = self._state.blob(digest), self._state.lives_in(digest)
        if blob is None:
            if entry is not None:
                raise tier_not_configured(digest, entry.tier, self._url)
            why = "it expired, was deleted, or another process has it"
            raise missing_error(digest, self._url, why)
        if len(blob.content) > limit:
            raise size_error(digest, self._url, limit)
        return blob.content

    def delete(self, digests: Iterable[Digest]) -> None:
        with self._state.lock:
            for digest in digests:
                self._state.blobs.pop(digest, None)

    def scan(self) -> Iterator[BlobInfo]:
        with self._state.lock:
            now = self._state.now()
            found = [
                BlobInfo(digest, len(blob.content), blob.until - now)
                for digest, blob in self._state.blobs.items()
                if blob.until > now
            ]
        return iter(found)

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        check_limit(size)
        with self._state.lock:
            now, found = self._state.now(), [self._state.blob(digest) for digest in digests]
        return [
            None if b is None else BlobPeek(len(b.content), b.until - now, b.content[:size])
            for b in found
        ]

    def find(self, prefix: str) -> Iterator[Digest]:
        return (info.digest for info in self.scan() if info.digest.startswith(prefix))


class MemoryPointers:
    """Pointers in a dict."""

    def __init__(self) -> None:
        self._locks = PerProcess(threading.Lock)
        self._values: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        return self._values.get(check_name(name))

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        return list(map(self.read, names))

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        check_name(name)
        with self._locks.get():
            if self._values.get(name) != expected:
                return False
            if value is None:
                self._values.pop(name, None)
            else:
                self._values[name] = bytes(check_value(value))
            return True

    def names(self, prefix: str = "") -> Iterator[str]:
        with self._locks.get():
            found = [name for name in self._values if name.startswith(prefix)]
        return iter(found)


@dataclass
class _Lease:
    owner: str
    fence: int
    until: float = -math.inf


class MemoryLeases:
    """Leases in a dict; all names share one sequence of fencing numbers."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock
        self._locks = PerProcess(threading.Lock)
        self._leases: dict[str, _Lease] = {}
        self._fences = itertools.count(1)

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:
        ttl = check_ttl(ttl)
        check_owner(owner)
        with self._locks.get():
            lease = self._live(check_name(name))
            if lease is None:
                lease = self._leases[name] = _Lease(owner, next(self._fences))
            if lease.owner != owner:
                return None
            lease.until = self._now() + ttl
            return lease.fence

    def renew(self, name: str, owner: str, ttl: float) -> bool:
        ttl = check_ttl(ttl)
        with self._locks.get():
            lease = self._live(check_name(name))
            if lease is None or lease.owner != owner:
                return False
            lease.until = self._now() + ttl
            return True

    def release(self, name: str, owner: str) -> bool:
        with self._locks.get():
            lease = self._live(check_name(name))
            if lease is None or lease.owner != owner:
                return False
            del self._leases[name]
            return True

    def read(self, name: str) -> LeaseInfo | None:
        with self._locks.get():
            lease = self._live(check_name(name))
            if lease is None:
                return None
            return LeaseInfo(lease.owner, lease.fence, lease.until - self._now())

    def names(self, prefix: str = "") -> Iterator[str]:
        with self._locks.get():
            found = [name for name in self._leases if name.startswith(prefix)]
        return iter(found)

    def _live(self, name: str) -> _Lease | None:
        lease = self._leases.get(name)
        if lease is not None and lease.until <= self._now():
            del self._leases[name]
            return None
        return lease
