"""The versions that a process has: each is one class there, however often it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from offload.registry.pickling import Pair
from offload.stores.processes import PerProcess

__all__ = ("Loaded",)


class Loaded:
    """What was loaded or shipped in this process; children of a fork have it, too."""

    def __init__(self) -> None:
        self._versions: dict[Pair, Any] = {}
        self._pairs: dict[int, tuple[Any, Pair]] = {}  # by id: classes may have odd hashes
        self._lock = PerProcess(threading.RLock)

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Let one thread load; others wait, and find what it loaded."""
        with self._lock.get():
            yield

    def find(self, pair: Pair) -> Any:
        """Return a version that is loaded, None if it is not."""
        return self._versions.get(pair)

    def add(self, versions: Mapping[Pair, Any]) -> None:
        """Take versions that refer to each other: all of them or none, also in a child that is
        forked meanwhile.
        """
        self._pairs.update({id(obj): (obj, pair) for pair, obj in versions.items()})
        self._versions.update(versions)

    def pair_of(self, obj: Any) -> Pair | None:
        """Return which version *obj* was loaded as; None if it was not."""
        found = self._pairs.get(id(obj))
        return found[1] if found is not None and found[0] is obj else None

    def pairs(self) -> list[Pair]:
        """Return all versions that are loaded."""
        return list(self._versions)
