"""Leases in records that a store changes atomically: files, S3 objects."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TypeVar

from offload.stores.checks import check_owner, check_ttl
from offload.stores.protocols import LeaseInfo, SweepItem

REMEMBER = 86400.0
"""Seconds for which an ended lease keeps its last fencing number."""

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """The content of a record when it was read.

    Attributes:
        content: None if it doesn't exist.
        earliest, latest: bounds of the store's time when it had been read.
        etag: of an S3 object that exists.
    """

    content: bytes | None
    earliest: float
    latest: float
    etag: str | None = None


class Records(ABC):
    """Named contents that change atomically."""

    @abstractmethod
    def record(self, name: str) -> Record:
        """Return a record as it is now."""

    @abstractmethod
    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of records that start with *prefix*."""

    @abstractmethod
    def change(self, name: str, decide: Callable[[Record], tuple[bytes | None, T]]) -> T:
        """Replace a record's content by what *decide* returns for it, in one step.

        *decide* returns the new content (None: leave it) and this call's result. It is called
        again if others changed the record meanwhile.
        """

    @abstractmethod
    def sweep(self, is_over: Callable[[Record], bool], *, dry_run: bool) -> Iterator[str]:
        """Delete the records that *is_over*, unless *dry_run*; yield their names."""


@dataclass
class _Lease:
    owner: str = ""
    fence: int = 0
    until: float = 0.0


class RecordLeases:
    """Leases as JSON in records, by the store's clock as far as it is known.

    A lease lasts at least as long as it was taken for. Where others' clocks are ahead, they may
    take it early; fencing numbers still tell the owners apart.
    """

    def __init__(self, records: Records) -> None:
        self._records = records

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:
        check_owner(owner)
        ttl = check_ttl(ttl)

        def decide(seen: Record) -> tuple[bytes | None, int | None]:
            lease = _parse(seen)
            if lease.until <= seen.earliest:
                # By time, so that it keeps increasing after the lease was forgotten.
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
        """Forget leases that ended a day ago, unless *dry_run*, and yield them."""

        def is_over(seen: Record) -> bool:
            lease = _parse(seen)
            last = max(lease.until, lease.fence / 1e6)  # a released lease has no end
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
    with suppress(TypeError, ValueError):
        return _Lease(**json.loads(seen.content or b"{}"))
    return _Lease()  # a damaged record counts as no lease


def _serialize(lease: _Lease) -> bytes:
    return json.dumps(asdict(lease)).encode()
