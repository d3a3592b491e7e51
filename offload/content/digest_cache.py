"""Digests that a process remembers, so that it neither hashes nor reads a value twice.

Only those of immutable values: ``bytes``, ``str``, Arrow tables, batches, and arrays, and numpy
arrays without objects that are read-only down to the array that owns the memory. (Two changes go
unnoticed: of an array that is made writable and read-only again between two calls, and of numpy
memory that an Arrow array wraps without a copy, which Arrow forbids.)
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from offload.digest import Digest

T = TypeVar("T")
_MAX_DIGESTS = 1 << 16
_ENTRY = 1024  # rough bytes that an entry takes besides its value; a short string takes less
_all: weakref.WeakSet[Any] = weakref.WeakSet()


class DigestCache(Generic[T]):
    """Maps immutable objects, by identity, to the results of storing them.

    Objects are referenced weakly where their type allows it. Others (bytes, str) are kept
    alive, up to *size* bytes with their entries; the least recently used are dropped first.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int, T]] = OrderedDict()
        self._renew_lock()
        _all.add(self)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()  # a weak reference's callback may run within a call

    def find(self, value: object, serializer: str) -> T | None:
        """Return the result for this very object and *serializer*; None if there is none."""
        key = (id(value), serializer)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            held = entry[0]
            if (held() if isinstance(held, weakref.ref) else held) is not value:
                return None
            if not is_immutable(value):
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return entry[2]

    def remember(self, value: object, serializer: str, result: T) -> None:
        """Remember *result* for *value* if that is immutable and fits."""
        if not self._size or not is_immutable(value):
            return
        key = (id(value), serializer)
        held: Any
        if type(value) in (bytes, str):
            held, weight = value, sys.getsizeof(value) + _ENTRY
            if weight > self._size:
                return
        else:
            held, weight = weakref.ref(value, lambda _: self._drop(key)), 0
        with self._lock:
            self._drop(key)
            self._entries[key] = (held, weight, result)
            self._used += weight
            while self._used > self._size:
                self._drop(next(k for k, entry in self._entries.items() if entry[1]))

    def forget(self, value: object, serializer: str) -> None:
        """Drop the result for *value*."""
        self._drop((id(value), serializer))

    def _drop(self, key: Hashable) -> None:
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._used -= entry[1]


class KnownBlobs:
    """Maps the digest of a stored value to those of all its blobs.

    Also remembers until when a hold by `PUT` keeps them. Bounded by the number of digests;
    the least recently noted values are dropped first.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Digest, tuple[float, list[Digest]]] = OrderedDict()
        self._size = 0
        self._renew_lock()
        _all.add(self)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def note(self, digests: list[Digest], until: float = 0.0) -> None:
        """Remember a value's digests, its root first, and until when they are held for sure."""
        root = digests[0]
        with self._lock:
            before, old = self._known.pop(root, (0.0, []))
            self._known[root] = (max(before, until), digests)
            self._size += len(digests) - len(old)
            while self._size > _MAX_DIGESTS and len(self._known) > 1:
                self._size -= len(self._known.popitem(last=False)[1][1])

    def find(self, root: Digest) -> tuple[float, list[Digest]]:
        """Return the end and the digests noted for *root*; ``(0.0, [])`` if there are none."""
        with self._lock:
            return self._known.get(root, (0.0, []))


def _renew_locks() -> None:
    """Unlock everything in a forked child: another thread of its parent may have had the locks."""
    for each in list(_all):
        each._renew_lock()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)

_ARROW = ("Table", "RecordBatch", "Array", "ChunkedArray")


def is_immutable(value: object) -> bool:
    """Return whether *value* can't change while it is the same object."""
    kind = type(value)
    if kind is bytes or kind is str:
        return True
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        array: Any = value
        if array.dtype.hasobject:  # the objects may change
            return False
        while type(array).__module__ == "numpy":
            if array.flags.writeable:
                return False
            if array.base is None:
                return True
            array = array.base
        return type(array) is bytes
    return kind.__module__.startswith("pyarrow.") and kind.__name__.endswith(_ARROW)
