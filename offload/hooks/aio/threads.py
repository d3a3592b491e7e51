"""A few threads per process that make blocking calls for coroutines.

Celery publishes by blocking calls, and so do the drivers of stores. Few threads are enough: the
interpreter runs one at a time, and each that computes may keep the event loop waiting for up to
`sys.getswitchinterval` (5 ms) whenever the loop has let go of the interpreter: each time it waits
or is woken, or takes a lock. So it takes no lock here, and busy threads rarely wake it.

Each wake-up releases the interpreter lock three times: asyncio waits, and reads twice from its
socket. So an `Outbox` delivers the outcomes of threads without waking the event loop for each one.

The threads are daemonic, so that a store that is unavailable doesn't delay the end of the process
by its timeouts.
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
"""Maximum threads per process."""
_END = 5.0  # maximum seconds for which a process waits at exit for calls that have started

_thread = threading.local()


async def call_in_thread(function: Callable[[], T]) -> T:
    """Return the result of *function*, called in a thread with a copy of the caller's context.

    If the coroutine is cancelled, a call that hasn't started is dropped, with all it refers to.
    One that has started goes on; its outcome is dropped.
    """
    if is_calling_thread():  # an event loop in a call: waiting for another thread could be forever
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
    """Return whether this is one of the threads."""
    return getattr(_thread, "is_ours", False)


class _Job:
    """A call for a coroutine, whose *future* receives its outcome."""

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
        """Forget the call unless it has started."""
        self._call = None


class _Threads:
    """The threads of one process. They are started when they are needed, and then stay."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._starting = threading.Lock()
        self._running: list[threading.Lock] = []  # of each thread, which has it during a call
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
            del job  # keep no reference to what the caller has finished with

    def _end(self) -> None:
        """Let calls that have started finish, such as a message that is being sent."""
        if os.getpid() != self._pid:  # a forked child inherited this
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
