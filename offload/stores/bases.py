"""Base classes for drivers: blobs that expire without holds, and leases in records."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TypeVar

from offload.digest import Buffer, Digest, parse_digest
from offload.errors import StoreError
from offload.stores.capabilities import BlobPeek
from offload.stores.checks import check_holder, check_limit, check_owner, check_ttl
from offload.stores.processes import Threads
from offload.stores.protocols import PUT, LeaseInfo, SweepItem

WINDOW = 32 << 20
"""Maximum bytes to read ahead (or one blob, if that is larger)."""
_GREATEST = 1 << 63  # more than any number in a lease
BLOB_NAME = re.compile(r"b3-[0-9a-f]{64}", re.ASCII)
"""Pattern of the name of a blob's file, folder, or object."""


def blob_name(digest: Digest, url: str) -> str:
    """Return the name of a blob's file. Raises StoreError if *digest* isn't a digest."""
    name = digest.replace(":", "-")
    if not BLOB_NAME.fullmatch(name):
        raise StoreError(f"not a content digest: {digest[:100]!r}", store=url)
    return name


def blob_digest(name: str) -> Digest | None:
    """Return the digest of the blob whose file has this name; None for other files."""
    return parse_digest(name.replace("-", ":")) if BLOB_NAME.fullmatch(name) else None


class ExpiringBlobs(ABC):
    """Blobs that live for the longest time requested; releasing them has no effect.

    A driver implements the operations on one blob; *threads* run several at once.
    """

    tracks_holds = False

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    @property
    def puts_at_once(self) -> int:
        return self._threads.number

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        check_holder(holder)
        check_ttl(ttl)
        asked = list(dict.fromkeys(digests))
        exist = self._threads.each(lambda digest: self._extend_one(digest, ttl), asked)
        return {digest for digest, exists in zip(asked, exist, strict=True) if not exists}

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        """Do nothing, because holds aren't tracked."""
        check_holder(holder)

    def holders(self, digest: Digest) -> Mapping[str, float]:
        return {}

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        check_limit(limit)
        window = min(max(WINDOW // max(limit, 1), 1), self._threads.number)
        return self._threads.ahead(lambda digest: self._get_one(digest, limit), digests, window)

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        check_limit(size)
        return self._threads.each(lambda digest: self._peek_one(digest, size), digests)

    @abstractmethod
    def _extend_one(self, digest: Digest, ttl: float) -> bool:
        """Keep a blob for at least *ttl* seconds; return whether it exists."""

    @abstractmethod
    def _get_one(self, digest: Digest, limit: int) -> Buffer:
        """Return a blob. Raises BlobMissing; IntegrityError if it has more than *limit* bytes."""

    @abstractmethod
    def _peek_one(self, digest: Digest, size: int) -> BlobPeek | None:
        """Return a blob's state and first *size* bytes; None if it doesn't exist."""


REMEMBER = 86400.0
"""Seconds to keep the last fencing number of a lease that has ended."""

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """A record as it was read.

    Attributes:
        content: its content; None if it doesn't exist.
        earliest, latest: bounds of the store's time just after the read, in seconds since 1970.
        etag: the ETag, if it is an existing S3 object.
    """

    content: bytes | None
    earliest: float
    latest: float
    etag: str | None = None


class Records(ABC):
    """Named records that change atomically."""

    @abstractmethod
    def record(self, name: str) -> Record:
        """Return the current state of a record."""

    @abstractmethod
    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of records that start with *prefix*."""

    @abstractmethod
    def change(self, name: str, decide: Callable[[Record], tuple[bytes | None, T]]) -> T:
        """Replace a record's content atomically by what *decide* returns; return its result.

        *decide* takes the record, and returns its new content (None leaves it unchanged) and the
        result of this call. It is called again if the record has changed meanwhile.
        """

    @abstractmethod
    def sweep(self, is_over: Callable[[Record], bool], *, dry_run: bool) -> Iterator[str]:
        """Delete the records for which *is_over* is true, unless *dry_run*; yield their names."""


@dataclass
class _Lease:
    owner: str = ""
    fence: int = 0
    until: float = 0.0


class RecordLeases:
    """Leases stored as JSON in records, with times by the store's clock as far as it is known.

    A lease lasts at least as long as requested, but a client whose clock is fast may take it too
    early. Fencing numbers still distinguish the owners.
    """

    def __init__(self, records: Records) -> None:
        self._records = records

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:
        check_owner(owner)
        ttl = check_ttl(ttl)

        def decide(seen: Record) -> tuple[bytes | None, int | None]:
            lease = _parse(seen)
            if lease.until <= seen.earliest:
                # Derive the fencing number from the time, so that it grows even if a sweep deleted
                # the record of the last one.
                lease = _Lease(owner, max(lease.fence + 1, int(seen.latest * 1e6)))
            elif lease.owner != owner:
                return None, None
            lease.until = seen.latest + ttl
            return _serialize(lease), lease.fence

        return self._records.change(name, decide)

    def renew(self, name: str, owner: str, ttl: float) -> bool:
        return self._set_end(name, owner, check_ttl(ttl))

    def release(self, name: str, owner: str) -> bool:
        return self._set_end(name, owner, None)

    def read(self, name: str) -> LeaseInfo | None:
        seen = self._records.record(name)
        lease = _parse(seen)
        if lease.until <= seen.earliest:
            return None
        return LeaseInfo(lease.owner, lease.fence, lease.until - seen.earliest)

    def names(self, prefix: str = "") -> Iterator[str]:
        return self._records.names(prefix)

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Delete leases that ended a day ago, unless *dry_run*, and yield them."""

        def is_over(seen: Record) -> bool:
            lease = _parse(seen)
            last = max(lease.until, lease.fence / 1e6)  # a released lease has no expiry
            return lease.fence > 0 and last < seen.earliest - REMEMBER

        for name in self._records.sweep(is_over, dry_run=dry_run):
            yield SweepItem("lease", name, 0, "ended a day ago")

    def _set_end(self, name: str, owner: str, ttl: float | None) -> bool:
        def decide(seen: Record) -> tuple[bytes | None, bool]:
            lease = _parse(seen)
            if lease.owner != owner or lease.until <= seen.earliest:
                return None, False
            lease.until = 0.0 if ttl is None else seen.latest + ttl
            return _serialize(lease), True

        return self._records.change(name, decide)


def _parse(seen: Record) -> _Lease:
    with suppress(TypeError, ValueError, RecursionError):
        lease = _Lease(**json.loads(seen.content or b"{}"))
        numbers = lease.fence, lease.until
        if (
            type(lease.owner) is str
            and type(lease.fence) is int
            and type(lease.until) in (int, float)
            and all(0 <= number < _GREATEST for number in numbers)
        ):
            return lease
    return _Lease()  # treat a damaged record as no lease


def _serialize(lease: _Lease) -> bytes:
    return json.dumps(asdict(lease)).encode()
