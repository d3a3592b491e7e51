"""What a store offers for snapshots: a folder of small files, and which fold is the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from offload.stores.protocols import PointerStore
from offload.stores.snapshots.names import is_fold

__all__ = ("LARGEST", "Entry", "Head", "Listed", "Pointed", "Shelf")

LARGEST = 64 << 20
"""Bytes of a file that are read at most."""

_POINTER = "stats/fold"


@dataclass(frozen=True)
class Entry:
    """A file.

    Attributes:
        tag: another one whenever the content is.
        written: when it was, in seconds since 1970 by the store's clock.
    """

    name: str
    size: int
    tag: str
    written: float


class Shelf(Protocol):
    """Files by name (``a-z 0-9 . -``), each seen whole or as it was before.

    Errors are as of all of a store. That a file is not there is none.
    """

    @property
    def url(self) -> str: ...

    def entries(self) -> list[Entry]:
        """Return all files that are there."""

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the content of each (of `LARGEST` bytes at most), None if it is not there."""

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file. It has one writer."""

    def remove(self, names: Sequence[str]) -> None:
        """Remove files."""

    def now(self) -> float:
        """Return the time, as well as it is known without asking."""

    def sure_time(self) -> float:
        """Return a time that has come by the store's clock, for who removes by age."""


class Head(Protocol):
    """Which fold counts."""

    def find(self) -> str | None:
        """Return its name; None if nothing was folded yet."""

    def swap(self, old: str | None, new: str) -> bool:
        """Make *new*, which is written, the head in place of *old*; return whether it is."""


class Pointed:
    """The head is the fold that a pointer names."""

    def __init__(self, pointers: PointerStore) -> None:
        self._pointers = pointers

    def find(self) -> str | None:
        return _named(self._pointers.read(_POINTER))

    def swap(self, old: str | None, new: str) -> bool:
        current = self._pointers.read(_POINTER)
        if _named(current) != old:
            return False
        return self._pointers.swap(_POINTER, current, new.encode())


def _named(value: bytes | None) -> str | None:
    name = (value or b"").decode("ascii", "replace")
    return name if is_fold(name) else None  # else somebody else wrote it


class Listed:
    """The head is the fold with the highest number, of several the first by name."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def find(self) -> str | None:
        folds = [entry.name for entry in self._shelf.entries() if is_fold(entry.name)]
        number = max((name.rpartition("-")[0] for name in folds), default="")
        return min((name for name in folds if name.startswith(f"{number}-")), default=None)

    def swap(self, old: str | None, new: str) -> bool:  # noqa: ARG002 (its number says it)
        return self.find() == new
