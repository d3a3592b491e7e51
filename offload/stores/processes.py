"""Objects that must not cross a fork: one per process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ("PerProcess",)

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Create an object when a process first needs it, and again after a fork.

    Uses no lock, which a fork could leave locked in the child forever. ``dict.setdefault``
    is atomic, so threads that start together agree on one object (another may be created and
    dropped).
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
        """Return and forget this process's object; None if there is none."""
        return self._made.pop(os.getpid(), None)
