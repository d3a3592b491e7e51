"""A store in this process's memory: for tests, eager mode and one-process workers.

Nothing in it outlives the process or is seen by another one; a forked child goes on with
a copy of its own.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from offload.digest import Buffer, Digest
from offload.errors import BlobMissing, IntegrityError
from offload.stores.capabilities import BlobPeek
from offload.stores.checks import (
    check_holder,
    check_limit,
    check_name,
    check_owner,
    check_ttl,
    check_value,
)
from offload.stores.memory_places import Blob, Clock, Locks, MemoryPlaces
from offload.stores.memory_tallies import MemoryTallies
from offload.stores.places import elsewhere
from offload.stores.processes import PerProcess
from offload.stores.protocols import PUT, BlobInfo, Parts, SweepItem
from offload.stores.url import StoreURL

__all__ = ("MemoryStore", "open_memory")


class MemoryStore:
    """See the module. *clock* returns seconds and is what times to live are counted by."""

    def __init__(self, name: str = "", *, clock: Clock = time.monotonic) -> None:
        self.url = f"memory://{name}"
        locks: Locks = PerProcess(threading.Lock)
        blobs: dict[Digest, Blob] = {}
        self.places = MemoryPlaces(clock, locks, blobs)
        self.blobs = MemoryBlobs(self.url, clock, locks, blobs, self.places)
        self.pointers = MemoryPointers(locks)
        self.leases = MemoryLeases(clock, locks)
        self.tallies = MemoryTallies()

    def sweep(self, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Drop what has expired, and yield it."""
        return iter(self.blobs.sweep(dry_run=dry_run))

    def close(self) -> None:
        """Do nothing: there is nothing to give back, and the content stays."""


_stores: dict[str, MemoryStore] = {}


def open_memory(url: StoreURL) -> MemoryStore:
    """Open ``memory://name``: the same store for the same name, in one process."""
    name = ",".join(host for host, _ in url.hosts) + url.path
    return _stores.setdefault(name, MemoryStore(name))


class MemoryBlobs:
    """Blobs in a dict; expired ones are dropped whenever something is stored."""

    tracks_holds = True

    def __init__(
        self,
        url: str,
        clock: Clock,
        locks: Locks,
        blobs: dict[Digest, Blob],
        places: MemoryPlaces,
    ) -> None:
        self._url = url
        self._clock = clock
        self._locks = locks
        self._blobs = blobs
        self._places = places

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        return set(self._places.hold(digests, ttl, check_holder(holder)))

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        self._places.release(digests, check_holder(holder), grace)

    def holders(self, digest: Digest) -> Mapping[str, float]:
        return self._places.holders(digest)

    def count_holders(self, digests: Sequence[Digest]) -> list[int]:
        return self._places.count_holders(digests)

    def longest_holds(self, digests: Sequence[Digest]) -> list[Mapping[str, float]]:
        return self._places.longest_holds(digests)

    def held_by(self, digests: Sequence[Digest], name: str) -> set[Digest]:
        return self._places.held_by(digests, name)

    def delete_unheld(self, digests: Sequence[Digest]) -> set[Digest]:
        return self._places.delete_unheld(digests)

    def put(
        self,
        blobs: Mapping[Digest, Parts],
        ttl: float,
        *,
        value_size: int | None = None,  # noqa: ARG002
    ) -> None:
        ttl = check_ttl(ttl)
        contents = {digest: b"".join(parts) for digest, parts in blobs.items()}
        until = self._clock() + ttl
        with self._locks.get():
            for digest, content in contents.items():
                if not self._places.extend(digest, until):
                    self._blobs[digest] = Blob(content, until)
                    self._places.look_again(digest, until)
            self._places.drop_expired()

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        check_limit(limit)
        return (self._get(digest, limit) for digest in digests)

    def delete(self, digests: Iterable[Digest]) -> None:
        with self._locks.get():
            for digest in digests:
                self._blobs.pop(digest, None)

    def scan(self) -> Iterator[BlobInfo]:
        now = self._clock()
        with self._locks.get():
            found = [
                BlobInfo(digest, len(blob.content), blob.until - now)
                for digest, blob in self._blobs.items()
                if blob.until > now
            ]
        return iter(found)

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        check_limit(size)
        now = self._clock()
        with self._locks.get():
            found = [
                self._blobs[digest] if self._places.is_here(digest) else None for digest in digests
            ]
        return [
            None if b is None else BlobPeek(len(b.content), b.until - now, b.content[:size])
            for b in found
        ]

    def find(self, begin: str) -> Iterator[Digest]:
        return (info.digest for info in self.scan() if info.digest.startswith(begin))

    def _get(self, digest: Digest, limit: int) -> Buffer:
        with self._locks.get():
            blob = self._blobs[digest] if self._places.is_here(digest) else None
            place = self._places.elsewhere(digest)
        if blob is None and place is not None:
            raise elsewhere(digest, place.tier, self._url)
        if blob is None:
            raise BlobMissing(
                f"{self._url} has no {digest}: it expired, was deleted, or another process has it",
                digest=digest,
                store=self._url,
            )
        if len(blob.content) > limit:
            raise IntegrityError(
                f"{digest} in {self._url} has {len(blob.content)} bytes, over the limit of {limit}",
                digest=digest,
                store=self._url,
            )
        return blob.content

    def sweep(self, *, dry_run: bool) -> list[SweepItem]:
        """Drop what has expired, unless *dry_run*, and return it."""
        now = self._clock()
        with self._locks.get():
            found = [
                SweepItem("blob", digest, len(blob.content), "expired")
                for digest, blob in self._blobs.items()
                if blob.until <= now
            ]
            if not dry_run:
                self._places.drop_expired()
        return found


class MemoryPointers:
    def __init__(self, locks: Locks) -> None:
        self._locks = locks
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
    """Leases in a dict; all names share one rising series of fencing numbers."""

    def __init__(self, clock: Clock, locks: Locks) -> None:
        self._clock = clock
        self._locks = locks
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
            lease.until = self._clock() + ttl
            return lease.fence

    def renew(self, name: str, owner: str, ttl: float) -> bool:
        ttl = check_ttl(ttl)
        with self._locks.get():
            lease = self._live(check_name(name))
            if lease is None or lease.owner != owner:
                return False
            lease.until = self._clock() + ttl
            return True

    def release(self, name: str, owner: str) -> bool:
        with self._locks.get():
            lease = self._live(check_name(name))
            if lease is None or lease.owner != owner:
                return False
            del self._leases[name]
            return True

    def _live(self, name: str) -> _Lease | None:
        lease = self._leases.get(name)
        if lease is not None and lease.until <= self._clock():
            del self._leases[name]
            return None
        return lease
