"""One object for each process: what must not cross a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ("PerProcess",)

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Makes an object when it is first asked for in a process, and again after a fork.

    It uses no lock of its own, which a fork could leave locked in the child for ever:
    ``dict.setdefault`` is atomic, so threads that come first together agree on one object
    (another may be made and dropped).
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: dict[int, T] = {}

    def get(self) -> T:
        """Return this process's object."""
        pid = os.getpid()
        made = self._made.get(pid)
        if made is None:
            made = self._made.setdefault(pid, self._make())
            for other in [key for key in self._made if key != pid]:
                self._made.pop(other, None)  # the parent's
        return made

    def take(self) -> T | None:
        """Return this process's object, if there is one, and forget it."""
        return self._made.pop(os.getpid(), None)
