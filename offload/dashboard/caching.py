"""Caches that all browsers share: refreshed in the background, or kept for a few seconds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from offload.errors import OffloadError
from offload.forks import start_thread
from offload.stores.processes import PerProcess

T = TypeVar("T")
Key = tuple[Hashable, ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refreshed(Generic[T]):
    """The state of a `BackgroundRefresh`.

    Attributes:
        value: the newest value; None until the first is ready.
        age: seconds since the computation of *value* started; 0 until the first is ready.
        took: how many seconds the computation took.
        error: why the last attempt failed, in which case *value* is from an earlier one; else None.
        busy: whether a new value is being computed.
    """

    value: T | None = None
    age: float = 0.0
    took: float = 0.0
    error: Exception | None = None
    busy: bool = False


class BackgroundRefresh(Generic[T]):
    """Computes a value on the first request, and again when a request finds it stale.

    A thread computes one value at a time, and requests don't wait for it. Nothing is computed
    unless requested. A forked child starts empty. After an error it retries after *every*
    seconds.

    Args:
        compute: returns the value.
        every: seconds from the end of one computation to the start of the next.
        share: minimum ratio of that pause to the duration of the computation, so that refreshing
            doesn't keep a slow store busy. Ignored after the first computation, which is slow
            because it also connects.
        clock: returns seconds.
    """

    def __init__(
        self,
        compute: Callable[[], T],
        *,
        every: float = 5.0,
        share: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._of_process = PerProcess(lambda: _Refresher(compute, every, share, clock))

    def get(self, wait: float = 0.0) -> Refreshed[T]:
        """Return the current state, waiting up to *wait* seconds for the first value."""
        return self._of_process.get().get(wait)

    def invalidate(self) -> None:
        """Compute the value again on the next request."""
        self._of_process.get().invalidate()


class _Refresher(Generic[T]):
    """The value in one process."""

    def __init__(
        self, compute: Callable[[], T], every: float, share: float, clock: Callable[[], float]
    ) -> None:
        self._compute = compute
        self._every = every
        self._share = share
        self._clock = clock
        self._changed = threading.Condition()
        self._value: T | None = None
        self._error: Exception | None = None
        self._taken = self._took = 0.0
        self._due = float("-inf")
        self._busy = False

    def get(self, wait: float) -> Refreshed[T]:
        with self._changed:
            if not self._busy and self._clock() >= self._due:
                self._busy = True
                self._due = float("inf")  # unless it is invalidated meanwhile
                start_thread(self._run, "offload-dashboard")
            if self._value is None and self._error is None:
                self._changed.wait_for(lambda: not self._busy, wait)
            age = 0.0 if self._value is None else self._clock() - self._taken
            return Refreshed(self._value, age, self._took, self._error, self._busy)

    def invalidate(self) -> None:
        with self._changed:
            self._due = float("-inf")

    def _run(self) -> None:
        start = self._clock()
        value: T | None = None
        error: Exception | None = None
        try:
            value = self._compute()
        except Exception as exc:
            error = exc
            if not isinstance(exc, OffloadError):
                logger.exception("a page's data can't be refreshed")
        end = self._clock()
        with self._changed:
            first = self._value is None
            if error is None:
                self._value, self._taken, self._took = value, start, end - start
            self._error = error
            pause = self._every if error or first else max(self._every, self._share * (end - start))
            self._due = min(self._due, end + pause)
            self._busy = False
            self._changed.notify_all()


class TTLCache(Generic[T]):
    """Caches results of *read* by its arguments for *ttl* seconds.

    Concurrent requests for the same key share one read; other keys don't wait for it. An error is
    raised in all waiting requests and not cached, so while a store hangs, each waits for one
    attempt only.

    Args:
        read: returns the result for a key.
        ttl: seconds to reuse a result.
        most: maximum number of results to keep.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        read: Callable[..., T],
        ttl: float,
        *,
        most: int = 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._ttl = ttl
        self._most = most
        self._clock = clock
        self._of_process: PerProcess[_Results[T]] = PerProcess(_Results)

    def get(self, *key: Hashable) -> T:
        """Return the cached result of ``read(*key)``, or read it. Raises what *read* raises."""
        results = self._of_process.get()
        with results.lock:
            cached = results.cached.get(key)
            if cached is not None and self._clock() < cached[0]:
                return cached[1]
            pending = results.pending.get(key)
            if pending is None:
                own: Future[T] = Future()
                results.pending[key] = own
        if pending is not None:
            return pending.result()
        try:
            value = self._read(*key)
        except BaseException as exc:
            with results.lock:
                del results.pending[key]
            own.set_exception(exc)
            raise
        with results.lock:
            del results.pending[key]
            results.cached.pop(key, None)
            while len(results.cached) >= self._most:
                del results.cached[next(iter(results.cached))]
            results.cached[key] = (self._clock() + self._ttl, value)
        own.set_result(value)
        return value


class _Results(Generic[T]):
    """The results in one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cached: dict[Key, tuple[float, T]] = {}
        self.pending: dict[Key, Future[T]] = {}
