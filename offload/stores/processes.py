"""Objects that each process creates for itself, and thread pools."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from itertools import chain, islice
from typing import Generic, TypeVar

from offload.forks import start_thread

T = TypeVar("T")
R = TypeVar("R")


class PerProcess(Generic[T]):
    """An object that each process creates on first use, and again after a fork.

    It uses no lock, which a fork could leave locked in the child forever. ``dict.setdefault``
    is atomic, so threads that start at the same time agree on one object, although they may create
    several.

    Args:
        make: creates the object.
        keep_inherited: keep the parent's object alive in a forked child, without using it: dropping
            it could take a lock that a thread of the parent held during the fork.
    """

    def __init__(self, make: Callable[[], T], *, keep_inherited: bool = False) -> None:
        self._make = make
        self._made: dict[int, T] = {}
        self._inherited: list[T | None] | None = [] if keep_inherited else None

    def get(self) -> T:
        """Return this process's object."""
        pid = os.getpid()
        made = self._made.get(pid)
        if made is None:
            made = self._made.setdefault(pid, self._make())
            for other in [key for key in self._made if key != pid]:
                inherited = self._made.pop(other, None)
                if self._inherited is not None:
                    self._inherited.append(inherited)
        return made

    def take(self) -> T | None:
        """Return and forget this process's object; None if there is none."""
        return self._made.pop(os.getpid(), None)


def _taken(items: deque[T]) -> Iterator[T]:
    while items:
        yield items.popleft()  # don't keep a reference to the item


class _Pool:
    """A pool of daemon threads, which end with it.

    Unlike a ThreadPoolExecutor's threads, they don't delay the process's exit by the timeouts of
    an unavailable store.
    """

    def __init__(self, number: int, name: str) -> None:
        self._number = number
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[[T], R], item: T) -> Future[R]:
        future: Future[R] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(item))
                except BaseException as exc:
                    future.set_exception(exc)

        self._jobs.put(job)
        if not self._idle.acquire(blocking=False):
            self._grow()
        return future

    def shutdown(self) -> None:
        """Stop the threads after the submitted jobs."""
        self._end()
        for thread in self._threads:
            thread.join()

    def _end(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)

    __del__ = _end  # of a store that was dropped without being closed

    def _grow(self) -> None:
        with self._lock:
            number = len(self._threads)
            if number < self._number:
                with suppress(RuntimeError):  # the interpreter exits, or there are too many threads
                    name = f"{self._name}_{number}"
                    self._threads.append(start_thread(_run, name, self._jobs, self._idle))
        with suppress(queue.Empty):
            while not self._threads and (job := self._jobs.get_nowait()) is not None:
                job()


def _run(jobs: queue.SimpleQueue[Callable[[], None] | None], idle: threading.Semaphore) -> None:
    """Run jobs until there is None; without a reference to the pool, which may be dropped."""
    while (job := jobs.get()) is not None:
        job()
        del job  # don't keep a reference to what the caller no longer needs
        idle.release()


class Threads:
    """At most *number* threads per process, started when there are several calls to make.

    A forked child starts its own. With gevent's monkey patching, they are greenlets.
    """

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self._pools = PerProcess(lambda: _Pool(number, name), keep_inherited=True)

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the results of *function* for all items.

        Raises the first error once all calls have ended, because they use the caller's memory.
        """
        given = list(items)
        if len(given) < 2 or self.number < 2:
            return [function(item) for item in given]
        pool = self._pools.get()
        futures = [pool.submit(function, item) for item in given]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def ahead(self, function: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
        """Yield the results for all items in order, making at most *window* calls ahead.

        The caller's thread iterates over *items*.
        """
        if window < 2 or self.number < 2:
            yield from map(function, items)
            return
        given = iter(items)
        first = deque(islice(given, 2))
        if len(first) < 2:
            yield from map(function, first)
            return
        pid = os.getpid()
        rest = chain(_taken(first), given)
        futures: deque[tuple[T, Future[R]]] = deque()
        try:
            while True:
                for item in islice(rest, window - len(futures)):
                    futures.append((item, self._pools.get().submit(function, item)))
                if not futures:
                    return
                item, future = futures.popleft()
                # A forked child lacks the threads that complete the parent's futures.
                result = future.result() if os.getpid() == pid else function(item)
                del future
                yield result
                del result  # don't keep a reference to what the caller no longer needs
        finally:
            if os.getpid() == pid:  # in a forked child, a missing thread may hold their locks
                for _, future in futures:
                    future.cancel()

    def close(self) -> None:
        """Stop this process's threads after their calls; the next call starts new ones."""
        pool = self._pools.take()
        if pool is not None:
            pool.shutdown()
