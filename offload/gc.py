"""Removing what has ended from a store: one sweep, as the command and the task do it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from offload.errors import ConfigurationError, OffloadError
from offload.stores.heartbeat import held, process_name
from offload.stores.protocols import Store, SweepItem

__all__ = ("Collected", "LastSweep", "Total", "collect", "last_sweep")

NAME = "offload/gc"
"""Of the lease that one sweeper has, and of the pointer that tells of the last sweep."""
LEASE = 60.0  # seconds for which a sweeper that died keeps others away


@dataclass
class Total:
    """How many things, and their stored bytes."""

    count: int = 0
    size: int = 0


@dataclass
class Collected:
    """What a sweep removed, or would have removed.

    Attributes:
        store: its URL, without credentials.
        dry_run: whether nothing was removed.
        seconds: how long it took.
        kinds: totals by `SweepItem.kind`.
        busy: who was sweeping already, so that nothing was done; else None.
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

    def add(self, swept: SweepItem) -> None:
        total = self.kinds.setdefault(swept.kind, Total())
        total.count += 1
        total.size += swept.size

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
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
    """What a store's sweepers noted of themselves, by their own clocks.

    Attributes:
        by: ``host:pid`` of who began last.
        began: seconds since 1970.
        ended: when a sweep was last brought to its end; None if none ever was.
    """

    by: str
    began: float
    ended: float | None = None


def collect(
    store: Store, *, dry_run: bool = False, seen: Callable[[SweepItem], None] | None = None
) -> Collected:
    """Remove from *store* what has ended, and return the totals.

    One sweeps at a time: whoever comes meanwhile does nothing, and is told so by
    `Collected.busy`. Where a store has no leases several may sweep, which is harmless. A
    *dry_run* neither waits for anybody nor keeps anybody away.

    Args:
        dry_run: remove nothing, only tell what would be.
        seen: is called with each thing as it goes.

    Raises:
        ConfigurationError: the store cannot be swept safely; the message says what to do.
        StoreUnavailable, StoreError: what the store says; what was removed until then is gone.
    """
    began = time.monotonic()
    collected = Collected(store.url, dry_run)
    with ExitStack() as stack:
        if not dry_run:
            if not _take_turn(stack, store):
                collected.busy = _who(store)
                return collected
            _note(store, by=process_name(), began=time.time())
        for swept in store.sweep(dry_run=dry_run):
            collected.add(swept)
            if seen is not None:
                seen(swept)
        if not dry_run:
            _note(store, ended=time.time())
    collected.seconds = time.monotonic() - began
    return collected


def last_sweep(store: Store) -> LastSweep | None:
    """Return what is known of the last sweep; None if nothing is.

    Raises what reading a pointer raises.
    """
    return _parse(store.pointers.read(NAME))


def _take_turn(stack: ExitStack, store: Store) -> bool:
    """Whether nobody else sweeps; nobody else will until *stack* ends."""
    try:
        return stack.enter_context(held(store.leases, NAME, ttl=LEASE)) is not None
    except ConfigurationError:  # it has no leases
        return True


def _who(store: Store) -> str:
    with suppress(OffloadError):
        last = last_sweep(store)
        if last is not None:
            began = datetime.fromtimestamp(last.began, timezone.utc).isoformat(" ", "seconds")
            return f"{last.by}, since {began}"
    return "another process"


def _note(store: Store, **known: Any) -> None:
    """Tell who sweeps. That it cannot be told is no reason not to sweep."""
    with suppress(OffloadError):
        old = store.pointers.read(NAME)
        last = _parse(old)
        new = {**(asdict(last) if last is not None else {}), **known}
        store.pointers.swap(NAME, old, json.dumps(new).encode())


def _parse(written: bytes | None) -> LastSweep | None:
    try:
        return LastSweep(**json.loads(written or b"null"))
    except (TypeError, ValueError):  # nothing is there, or a newer version's note
        return None
