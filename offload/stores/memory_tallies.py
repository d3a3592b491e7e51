"""What is counted, in this process's memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from offload.stores.accounts import Accounts
from offload.stores.processes import PerProcess
from offload.stores.tallies import Rider, Span, Tally

__all__ = ("MemoryTallies",)


class MemoryTallies:
    """Args: *now* returns seconds since 1970."""

    rides = True

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._locks = PerProcess(threading.Lock)
        self._rider: Rider | None = None
        self.clear()

    def ride(self, rider: Rider) -> None:
        """There are no round trips: what the rider has is taken when somebody asks."""
        self._rider = rider

    def _take(self) -> None:
        tally = self._rider.due() if self._rider is not None else None
        if tally is not None:
            self.add(tally)

    def add(self, tally: Tally) -> None:
        with self._locks.get():
            if self._seen.get(tally.process) == tally.number:
                return
            self._seen[tally.process] = tally.number
            now = self._now()
            self._accounts.count(tally, now)
            self._accounts.prune(now)

    def end(self) -> None:
        """Do nothing: what is added is written."""

    def total(self) -> dict[str, int]:
        self._take()
        with self._locks.get():
            return dict(self._accounts.total)

    def series(self, span: Span, since: float | None = None) -> dict[int, dict[str, int]]:
        self._take()
        with self._locks.get():
            return self._accounts.counted(span, since, self._now())

    def clear(self) -> None:
        self._seen: dict[str, int] = {}
        self._accounts = Accounts()
