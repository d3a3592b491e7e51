"""Remembers what immutable objects were stored as, so that they are not hashed again.

Immutable are ``bytes``, ``str``, Arrow tables, batches and arrays, and numpy arrays that
are read-only down to the array that owns the memory and hold no objects. (Making such an
array writable, changing it and making it read-only again between two publishings defeats
this; so does changing memory of numpy's that an Arrow array was made over without a copy,
which Arrow forbids.)
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

__all__ = ("Memo",)

T = TypeVar("T")


class Memo(Generic[T]):
    """From immutable objects, by identity, to what was made of them.

    Objects are held weakly where their type allows it. The others (bytes, str) are kept
    alive, up to *size* bytes of them, least recently used first out.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._lock = threading.RLock()  # a weak reference's callback may come within a call
        self._entries: OrderedDict[Hashable, tuple[Any, int, T]] = OrderedDict()

    def find(self, value: object, kind: str) -> T | None:
        """Return what was remembered for this very object and *kind*."""
        key = (id(value), kind)
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

    def remember(self, value: object, kind: str, made: T) -> None:
        """Remember *made* for *value*, if that is immutable and there is room."""
        if not self._size or not is_immutable(value):
            return
        key = (id(value), kind)
        held: Any
        if type(value) in (bytes, str):
            held, weight = value, sys.getsizeof(value)
            if weight > self._size:
                return
        else:
            held, weight = weakref.ref(value, lambda _: self._drop(key)), 0
        with self._lock:
            self._drop(key)
            self._entries[key] = (held, weight, made)
            self._held += weight
            while self._held > self._size:
                self._drop(next(k for k, entry in self._entries.items() if entry[1]))

    def forget(self, value: object, kind: str) -> None:
        """Remember nothing for *value* any more."""
        self._drop((id(value), kind))

    def _drop(self, key: Hashable) -> None:
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._held -= entry[1]


_ARROW = ("Table", "RecordBatch", "Array", "ChunkedArray")


def is_immutable(value: object) -> bool:
    """Return whether *value* can be trusted not to change while it is the same object."""
    kind = type(value)
    if kind is bytes or kind is str:
        return True
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        array: Any = value
        if array.dtype.hasobject:  # what it holds may change
            return False
        while type(array).__module__ == "numpy":
            if array.flags.writeable:
                return False
            if array.base is None:
                return True
            array = array.base
        return type(array) is bytes
    return kind.__module__.startswith("pyarrow.") and kind.__name__.endswith(_ARROW)
