"""A value that takes long to make, kept and now and then made anew behind the scenes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from offload.errors import OffloadError
from offload.stores.processes import PerProcess

__all__ = ("Kept", "Refreshed")

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept(Generic[T]):
    """What `Refreshed` has.

    Attributes:
        value: the newest that could be made; None before the first.
        age: seconds since its making began; 0 before the first.
        took: seconds that it took.
        error: why the last try failed, if it did; *value* is of one before it then.
        busy: whether it is being made anew.
    """

    value: T | None = None
    age: float = 0.0
    took: float = 0.0
    error: Exception | None = None
    busy: bool = False


class Refreshed(Generic[T]):
    """Makes a value when it is first asked for, and anew when it is asked for and too old.

    It is made in a thread of the process that asks, one at a time, and nobody waits for it; when
    nobody asks, nothing is done. A forked child begins anew. After an error it is tried again
    *every* seconds.

    Args:
        make: makes the value.
        every: seconds from the end of one making to the begin of the next.
        share: how many times longer than the making took that is at least, so that a slow store
            is not kept busy; but for the first time, which takes longer as connections are made.
        clock: returns seconds.
    """

    def __init__(
        self,
        make: Callable[[], T],
        *,
        every: float = 5.0,
        share: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._of_process = PerProcess(lambda: _Making(make, every, share, clock))

    def look(self, wait: float = 0.0) -> Kept[T]:
        """Return what there is; waits up to so many seconds if it is being made for the first
        time.
        """
        return self._of_process.get().look(wait)

    def outdate(self) -> None:
        """Have it made anew when it is asked for next, for something was changed."""
        self._of_process.get().outdate()


class _Making(Generic[T]):
    """The value in one process."""

    def __init__(
        self, make: Callable[[], T], every: float, share: float, clock: Callable[[], float]
    ) -> None:
        self._make = make
        self._every = every
        self._share = share
        self._clock = clock
        self._changed = threading.Condition()
        self._value: T | None = None
        self._error: Exception | None = None
        self._taken = self._took = 0.0
        self._due = float("-inf")
        self._busy = False

    def look(self, wait: float) -> Kept[T]:
        with self._changed:
            if not self._busy and self._clock() >= self._due:
                self._busy = True
                self._due = float("inf")  # unless it is outdated meanwhile
                threading.Thread(target=self._run, name="offload-catalog", daemon=True).start()
            if self._value is None and self._error is None:
                self._changed.wait_for(lambda: not self._busy, wait)
            age = 0.0 if self._value is None else self._clock() - self._taken
            return Kept(self._value, age, self._took, self._error, self._busy)

    def outdate(self) -> None:
        with self._changed:
            self._due = float("-inf")

    def _run(self) -> None:
        begin = self._clock()
        value: T | None = None
        error: Exception | None = None
        try:
            value = self._make()
        except Exception as exc:
            error = exc
            if not isinstance(exc, OffloadError):
                logger.exception("what the store has could not be told")
        end = self._clock()
        with self._changed:
            first = self._value is None
            if error is None:
                self._value, self._taken, self._took = value, begin, end - begin
            self._error = error
            pause = self._every if error or first else max(self._every, self._share * (end - begin))
            self._due = min(self._due, end + pause)
            self._busy = False
            self._changed.notify_all()
