"""Sweep a store, deleting what has expired; used by the command and the task."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import chain
from typing import TYPE_CHECKING, Any

from offload.catalog.lifetime import named_blobs, sweep_holds
from offload.errors import ConfigurationError, OffloadError, StoreError
from offload.locks import Lock, process_name
from offload.memo.records import sweep_records
from offload.metrics.storage import sweep_sums
from offload.stores.capabilities import KeepsNamed
from offload.stores.protocols import Store, SweepItem

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher

_LATEST = 253_402_300_800.0  # the year 10000, in seconds since 1970
NAME = "offload/gc"
"""Name of the sweeper's lock and of the pointer that records the last sweep."""
LEASE = 60.0  # seconds for which a sweeper that crashed blocks others


@dataclass
class Total:
    """A number of items and their stored bytes."""

    count: int = 0
    size: int = 0


@dataclass
class SweepReport:
    """Totals of what a sweep deleted, or would have deleted.

    Attributes:
        store: its URL, without credentials.
        dry_run: whether nothing was deleted.
        seconds: duration of the sweep.
        kinds: totals by `SweepItem.kind`.
        busy: another sweeper that was running, so this one did nothing; else None.
    """

    store: str
    dry_run: bool = False
    seconds: float = 0.0
    kinds: dict[str, Total] = field(default_factory=dict)
    busy: str | None = None

    @property
    def count(self) -> int:
        return sum(total.count for total in self.kinds.values())

    @property
    def size(self) -> int:
        return sum(total.size for total in self.kinds.values())

    def add(self, item: SweepItem) -> None:
        total = self.kinds.setdefault(item.kind, Total())
        total.count += 1
        total.size += item.size

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "store": self.store,
            "dry_run": self.dry_run,
            "busy": self.busy,
            "count": self.count,
            "bytes": self.size,
            "kinds": {
                kind: {"count": total.count, "bytes": total.size}
                for kind, total in sorted(self.kinds.items())
            },
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class LastSweep:
    """The last sweep of a store, as its sweepers recorded it by their own clocks.

    Attributes:
        by: ``host:pid`` of the sweeper that started last.
        began: when it started, in seconds since 1970.
        ended: when a sweep last finished, in seconds since 1970; None if none ever did.
    """

    by: str
    began: float
    ended: float | None = None


def sweep(
    store: Store,
    *,
    dry_run: bool = False,
    seen: Callable[[SweepItem], None] | None = None,
    cipher: BlobCipher | None = None,
) -> SweepReport:
    """Delete what has expired in *store*, and return the totals.

    Only one process sweeps at a time: others do nothing, and `SweepReport.busy` names the
    sweeper. In a store without leases several may sweep, which is harmless. A *dry_run*
    neither waits for others nor blocks them.

    Args:
        dry_run: delete nothing, only report.
        seen: called with each item as it is deleted.
        cipher: decrypts what a catalog's records name; None without encryption.

    Raises:
        ConfigurationError: the store can't be swept safely; the message says what to do.
        StoreUnavailable, StoreError: the store failed; what was deleted before stays deleted.
    """
    began = time.monotonic()
    report = SweepReport(store.url, dry_run)
    with ExitStack() as stack:
        if not dry_run:
            if not _acquire(stack, store):
                report.busy = _sweeper(store)
                return report
            _note(store, by=process_name(), began=time.time())
        sums = sweep_sums(store, dry_run=dry_run)
        records = sweep_records(store, time.time, dry_run=dry_run)
        holds = sweep_holds(store, dry_run=dry_run)
        for item in chain(sums, records, holds, _sweep(store, cipher, dry_run=dry_run)):
            report.add(item)
            if seen is not None:
                seen(item)
        if not dry_run:
            _note(store, ended=time.time())
    report.seconds = time.monotonic() - began
    return report


def _sweep(store: Store, cipher: BlobCipher | None, *, dry_run: bool) -> Iterator[SweepItem]:
    """Sweep *store*; what a catalog names stays."""
    if isinstance(store, KeepsNamed):
        return store.sweep_unnamed(lambda asked: named_blobs(store, asked, cipher), dry_run=dry_run)
    return store.sweep(dry_run=dry_run)


def last_sweep(store: Store) -> LastSweep | None:
    """Return the last sweep of *store*, or None if there was none.

    Raises what reading a pointer raises.
    """
    return _parse(store.pointers.read(NAME))


def _acquire(stack: ExitStack, store: Store) -> bool:
    """Return whether this process may sweep, and keep others from it until *stack* exits."""
    lock = Lock(store, NAME, ttl=LEASE)
    try:
        if not lock.acquire(blocking=False):
            return False
    except ConfigurationError:  # the store has no leases
        return True
    stack.callback(_release, lock)
    return True


def _release(lock: Lock) -> None:
    with suppress(StoreError):  # another sweeper is harmless
        lock.release()


def _sweeper(store: Store) -> str:
    with suppress(OffloadError):
        last = last_sweep(store)
        if last is not None:
            began = datetime.fromtimestamp(last.began, timezone.utc).isoformat(" ", "seconds")
            return f"{last.by}, since {began}"
    return "another process"


def _note(store: Store, **known: Any) -> None:
    """Record who sweeps. A failure to record is ignored."""
    with suppress(OffloadError):
        old = store.pointers.read(NAME)
        last = _parse(old)
        new = {**(asdict(last) if last is not None else {}), **known}
        store.pointers.swap(NAME, old, json.dumps(new).encode())


def _parse(written: bytes | None) -> LastSweep | None:
    try:
        found = LastSweep(**json.loads(written or b"null"))
    except (TypeError, ValueError, RecursionError):  # no record, or a newer version's
        return None
    times = (found.began, 0.0 if found.ended is None else found.ended)
    is_valid = type(found.by) is str and all(type(at) in (int, float) for at in times)
    return found if is_valid and all(0 <= at < _LATEST for at in times) else None
