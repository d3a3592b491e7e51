"""What this process writes."""

from __future__ import annotations

import threading
from collections.abc import Callable

from offload.stores.accounts import Accounts
from offload.stores.snapshots.names import END, new_part
from offload.stores.snapshots.shelf import Shelf
from offload.stores.snapshots.written import Snapshot, write
from offload.stores.tallies import Tally

__all__ = ("LIFE", "Clock", "Part")

LIFE = 3600.0
"""Seconds for which a part is written."""

Clock = Callable[[], float]


class Part:
    """The part that a process is at, and the next ones. Safe among threads.

    Args:
        clocks: seconds that rise. A part's age is the most that one of them says: one may stand
            still while a machine sleeps, another may be set.
    """

    def __init__(self, shelf: Shelf, clocks: tuple[Clock, ...]) -> None:
        self._shelf = shelf
        self._clocks = clocks
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}
        self._begin(Accounts())

    def _begin(self, accounts: Accounts) -> None:
        self._name = new_part()
        self._begun = self._now()
        self._known: tuple[float, ...] | None = None  # when it was sure to be as we left it
        self._is_there = False
        self._accounts = accounts
        self._unsure = Accounts()  # what may not be written
        self._unsure.add(accounts)

    def add(self, tally: Tally) -> None:
        """Count a tally and write the part, both once for a tally that comes again."""
        with self._lock:
            self._turn()
            if self._seen.get(tally.process) != tally.number:
                self._seen[tally.process] = tally.number
                for accounts in (self._accounts, self._unsure):
                    accounts.count(tally, self._shelf.now())
            if self._unsure:
                self._write()

    def end(self) -> None:
        """Say that the part is over, if there is one."""
        with self._lock:
            if self._is_there and not self._unsure:
                self._close()

    def _turn(self) -> None:
        """Begin another part if it is time."""
        if not self._unsure:
            if self._age(self._begun) > LIFE:
                self._close()
        elif self._known is not None and self._age(self._known) > LIFE:
            # The store was away for so long that the part may be folded by now.
            self._begin(self._unsure)

    def _write(self) -> None:
        now = self._now()
        if self._known is None:
            self._known = now
        self._shelf.write(self._name, write(Snapshot(self._accounts)))
        self._known = now
        self._is_there = True
        self._unsure = Accounts()

    def _close(self) -> None:
        name, was_there = self._name, self._is_there
        self._begin(Accounts())
        if was_there:
            self._shelf.write(name + END, b"")

    def _now(self) -> tuple[float, ...]:
        return tuple(clock() for clock in self._clocks)

    def _age(self, since: tuple[float, ...]) -> float:
        return max(now - then for now, then in zip(self._now(), since, strict=True))
