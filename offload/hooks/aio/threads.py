"""A few threads per process that make blocking calls for coroutines.

Celery publishes by blocking calls, and so do the drivers of stores. Few threads are enough: the
interpreter runs one at a time, and each that computes may keep the event loop waiting for up to
`sys.getswitchinterval` (5 ms). They are daemonic, so that a store that is unavailable doesn't delay
the end of the process by its timeouts.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, TypeVar, cast

from offload.forks import start_thread
from offload.stores.processes import PerProcess

__all__ = ("THREADS", "call_in_thread", "is_calling_thread")

T = TypeVar("T")
Outcome = tuple[Any, BaseException | None]

THREADS = 4
"""Most threads per process."""
_END = 5.0  # most seconds that the end of the process waits for calls that have started

_thread = threading.local()


async def call_in_thread(function: Callable[[], T]) -> T:
    """Return the result of *function*, called in a thread with a copy of the caller's context.

    If the coroutine is cancelled, a call that hasn't started is dropped, with all it refers to.
    One that has started goes on; its outcome is dropped.
    """
    if is_calling_thread():  # an event loop in a call: waiting for another thread could be forever
        return function()
    loop = asyncio.get_running_loop()
    job = _Job(function, copy_context(), loop, loop.create_future())
    del function
    threads = _threads.get()
    threads.submit(job)
    try:
        result, error = await job.future
    finally:
        threads.discard(job)
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
        self,
        function: Callable[[], Any],
        context: Context,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Outcome],
    ) -> None:
        self.function: Callable[[], Any] | None = function
        self.context = context
        self.loop = loop
        self.future = future

    def run(self) -> None:
        function, self.function = self.function, None
        if function is None:
            return
        outcome: Outcome
        try:
            outcome = self.context.run(function), None
        except BaseException as exc:
            outcome = None, exc
        del function
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(_settle, self.future, outcome)

    def drop(self) -> None:
        self.function = None


def _settle(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)


class _Threads:
    """The threads of one process. They are started when they are needed, and then stay."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._jobs: dict[_Job, None] = {}  # in order; one is removed without a search
        self._number = self._idle = self._running = 0
        self._ended = False
        atexit.register(self._end)

    def submit(self, job: _Job) -> None:
        with self._changed:
            self._jobs[job] = None
            if self._idle < len(self._jobs) and self._number < THREADS:
                try:
                    self._start()
                except RuntimeError:
                    if not self._number:  # otherwise another thread makes the call
                        del self._jobs[job]
                        raise
            self._changed.notify()

    def discard(self, job: _Job) -> None:
        """Drop *job* unless it has started."""
        job.drop()
        with self._changed:
            self._jobs.pop(job, None)

    def _start(self) -> None:
        start_thread(self._work, f"offload-async_{self._number}")
        self._number += 1

    def _work(self) -> None:
        _thread.is_ours = True
        while True:
            with self._changed:
                self._idle += 1
                while not self._jobs:
                    self._changed.wait()
                self._idle -= 1
                job = next(iter(self._jobs))
                del self._jobs[job]
                self._running += 1
            try:
                job.run()
            finally:
                del job  # keep no reference to what the caller has finished with
                with self._changed:
                    self._running -= 1
                    if self._ended:
                        self._changed.notify_all()

    def _end(self) -> None:
        """Let calls that have started finish, such as a message that is being sent."""
        if os.getpid() != self._pid:  # a forked child inherited this
            return
        deadline = time.monotonic() + _END
        with self._changed:
            self._ended = True
            self._jobs.clear()
            while self._running and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)


_threads = PerProcess(_Threads, keep_inherited=True)
