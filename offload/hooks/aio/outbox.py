"""Deliver outcomes of threads to coroutines, without waking their event loop for each one.

Each wake-up releases the interpreter lock three times: asyncio waits, and reads twice from its
socket. Each time, the loop may then wait for other threads that compute, for 5 ms each.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress
from enum import Enum
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_PAUSE = 0.005  # seconds between two deliveries while threads have more to do
_MOST = 20  # outcomes at once; each continues a coroutine before the loop looks at anything else

_running = threading.local()


class _Due(Enum):
    NO = 0
    LATER = 1
    SOON = 2


class Outbox(Generic[T]):
    """Outcomes on their way to futures of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._posted: deque[tuple[asyncio.Future[T], T, bool]] = deque()
        self._due = _Due.NO
        self._timer: asyncio.TimerHandle | None = None

    def future(self) -> asyncio.Future[T]:
        return self.loop.create_future()

    def post(self, future: asyncio.Future[T], outcome: T, *, can_wait: bool = False) -> None:
        """Set the result of *future*, unless it is done; from any thread.

        Args:
            can_wait: whether the thread has more to do, so that nothing waits for this outcome
                except its own coroutine. It may then be delivered 5 ms later.
        """
        self._posted.append((future, outcome, can_wait))  # before looking whether it will be found
        if self._due is _Due.NO or (self._due is _Due.LATER and not can_wait):
            self._due = _Due.SOON
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._due = _Due.NO  # before looking: what is posted from now on is due again
        more = False
        for _ in range(_MOST):
            try:
                future, outcome, more = self._posted.popleft()
            except IndexError:
                break
            if not future.done():
                future.set_result(outcome)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._posted:
            self._due = _Due.SOON
            self.loop.call_soon(self._deliver)
        elif more:
            self._due = _Due.LATER
            self._timer = self.loop.call_later(_PAUSE, self._deliver)


def outbox_of(loop: asyncio.AbstractEventLoop) -> Outbox[Any]:
    """Return an outbox of *loop*, which must run in this thread."""
    found: Outbox[Any] | None = getattr(_running, "outbox", None)
    if found is None or found.loop is not loop:
        found = _running.outbox = Outbox(loop)
    return found
