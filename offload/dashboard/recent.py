"""What was read a moment ago, for all browsers alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

from offload.stores.processes import PerProcess

__all__ = ("Recent",)

T = TypeVar("T")
Key = tuple[Hashable, ...]


class Recent(Generic[T]):
    """Answers of *read* by key, each kept for some seconds.

    One thread reads for all that ask for the same at the time; other keys do not wait for it. An
    error is raised to all of those, and not kept: while a store hangs, nobody waits for more than
    one try.

    Args:
        seconds: for which an answer is given again.
        most: keys that are kept; the caller's keys shall be few.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        read: Callable[..., T],
        seconds: float,
        *,
        most: int = 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._of_process: PerProcess[_Answers[T]] = PerProcess(_Answers)

    def get(self, *key: Hashable) -> T:
        """Return what ``read(*key)`` returned not long ago, or returns now."""
        answers = self._of_process.get()
        with answers.lock:
            kept = answers.kept.get(key)
            if kept is not None and self._clock() < kept[0]:
                return kept[1]
            reading = answers.reading.get(key)
            if reading is None:
                own: Future[T] = Future()
                answers.reading[key] = own
        if reading is not None:
            return reading.result()
        try:
            value = self._read(*key)
        except BaseException as exc:
            with answers.lock:
                del answers.reading[key]
            own.set_exception(exc)
            raise
        with answers.lock:
            del answers.reading[key]
            answers.kept.pop(key, None)
            while len(answers.kept) >= self._most:
                del answers.kept[next(iter(answers.kept))]
            answers.kept[key] = (self._clock() + self._seconds, value)
        own.set_result(value)
        return value


class _Answers(Generic[T]):
    """Those of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: dict[Key, tuple[float, T]] = {}
        self.reading: dict[Key, Future[T]] = {}
