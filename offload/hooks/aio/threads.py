"""A few threads per process that make blocking calls for coroutines.

Celery and the store drivers block while they publish or transfer data. A few threads are enough,
because the interpreter runs only one at a time. Whenever the event loop releases the interpreter
lock (to wait, to wake up, or to take a lock), each computing thread may delay it by
`sys.getswitchinterval` (5 ms). So the loop takes no locks here, and busy threads rarely wake it.

At each wake-up, asyncio releases the interpreter lock three times: to wait, and for two reads from
its socket. So an `Outbox` delivers outcomes of threads without waking the loop for each one.

The threads are daemons, so that timeouts of an unavailable store don't delay the process's exit.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

from offload.forks import start_thread
from offload.stores.processes import PerProcess

T = TypeVar("T")
Outcome = tuple[Any, BaseException | None]

THREADS = 4
"""Maximum number of threads per process."""
_END = 5.0  # maximum seconds that a process waits at exit for calls that have started

_thread = threading.local()


async def call_in_thread(function: Callable[[], T]) -> T:
    """Call *function* in a thread, with a copy of the caller's context, and return its result.

    If the coroutine is cancelled, a call that hasn't started is dropped, with everything it refers
    to. A call that has started continues, but its outcome is dropped.

    Raises whatever *function* raises.
    """
    if is_calling_thread():  # an event loop within a call: waiting for another thread may deadlock
        return function()
    threads = _threads.get()
    outbox = outbox_of(asyncio.get_running_loop())
    job = _Job(function, copy_context(), outbox)
    del function
    threads.submit(job)
    try:
        result, error = await job.future
    finally:
        job.drop()
    if error is None:
        return cast("T", result)
    try:
        raise error
    finally:
        del error  # its traceback refers to this frame


def is_calling_thread() -> bool:
    """Return whether this thread is one of those that make calls for coroutines."""
    return getattr(_thread, "is_ours", False)


class _Job:
    """A call on behalf of a coroutine; its *future* receives the outcome."""

    def __init__(
        self, function: Callable[[], Any], context: Context, outbox: Outbox[Outcome]
    ) -> None:
        self._call: tuple[Callable[[], Any], Context] | None = function, context
        self._outbox = outbox
        self.future = outbox.future()

    def run(self, *, is_last: Callable[[], bool]) -> None:
        """Make the call; wake the event loop at once if it *is_last*."""
        call, self._call = self._call, None
        if call is None:
            return
        outcome: Outcome
        try:
            outcome = call[1].run(call[0]), None
        except BaseException as exc:
            outcome = None, exc
        del call
        self._outbox.post(self.future, outcome, can_wait=not is_last())

    def drop(self) -> None:
        """Drop the call unless it has started."""
        self._call = None


class _Threads:
    """The threads of one process. They start when needed, and then stay."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._starting = threading.Lock()
        self._running: list[threading.Lock] = []  # one per thread, which holds it during a call
        atexit.register(self._end)

    def submit(self, job: _Job) -> None:
        if len(self._running) < THREADS:
            try:
                self._start()
            except RuntimeError:
                if not self._running:  # otherwise another thread makes the call
                    raise
        self._jobs.put(job)

    def _start(self) -> None:
        with self._starting:
            number = len(self._running)
            if number < THREADS:
                running = threading.Lock()
                start_thread(self._work, f"offload-async_{number}", running)
                self._running.append(running)

    def _work(self, running: threading.Lock) -> None:
        _thread.is_ours = True
        while True:
            job = self._jobs.get()
            with running:
                job.run(is_last=self._jobs.empty)
            del job  # keep no reference to what the caller no longer needs

    def _end(self) -> None:
        """Let calls that have started finish, such as sending a message."""
        if os.getpid() != self._pid:  # this is a forked child, without the threads
            return
        deadline = time.monotonic() + _END
        with suppress(Empty):
            while True:
                self._jobs.get_nowait().drop()
        for running in self._running:
            running.acquire(timeout=max(deadline - time.monotonic(), 0.0))


_threads = PerProcess(_Threads, keep_inherited=True)


# -- outcomes

_PAUSE = 0.005  # seconds between two deliveries while threads have more to do
_MOST = 20  # outcomes per delivery; each resumes a coroutine before the loop does anything else


class _Due(Enum):
    NO = 0
    LATER = 1
    SOON = 2


class Outbox(Generic[T]):
    """Outcomes waiting for delivery to futures of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._posted: deque[tuple[asyncio.Future[T], T, bool]] = deque()
        self._due = _Due.NO
        self._timer: asyncio.TimerHandle | None = None

    def future(self) -> asyncio.Future[T]:
        return self.loop.create_future()

    def post(self, future: asyncio.Future[T], outcome: T, *, can_wait: bool = False) -> None:
        """Set the result of *future*, unless it is done. Callable from any thread.

        Args:
            can_wait: allow a delay of 5 ms, because the thread has more to do and only the
                future's own coroutine waits for this outcome.
        """
        self._posted.append((future, outcome, can_wait))  # before checking if a delivery is due
        if self._due is _Due.NO or (self._due is _Due.LATER and not can_wait):
            self._due = _Due.SOON
            with suppress(RuntimeError):  # the loop is closed, so nothing waits
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._due = _Due.NO  # before reading: outcomes posted from now on need another delivery
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
    """Return the outbox of *loop*, which must run in this thread."""
    found: Outbox[Any] | None = getattr(_thread, "outbox", None)
    if found is None or found.loop is not loop:
        found = _thread.outbox = Outbox(loop)
    return found
