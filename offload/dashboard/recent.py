"""What was read a moment ago, for all browsers alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from offload.stores.processes import PerProcess

__all__ = ("Recent",)

T = TypeVar("T")


class Recent(Generic[T]):
    """Answers of *read* by key, each kept for some seconds; one thread reads, others wait.

    Errors are raised to whoever asked, and not kept.

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
        self._locks = PerProcess(threading.Lock)
        self._kept: dict[tuple[Hashable, ...], tuple[float, T]] = {}

    def get(self, *key: Hashable) -> T:
        """Return what ``read(*key)`` returned not long ago, or returns now."""
        with self._locks.get():
            found = self._kept.get(key)
            if found is None or self._clock() >= found[0]:
                value = self._read(*key)
                self._kept.pop(key, None)
                while len(self._kept) >= self._most:
                    del self._kept[next(iter(self._kept))]
                found = self._kept[key] = (self._clock() + self._seconds, value)
            return found[1]
