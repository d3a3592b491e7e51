"""Pickle, protocol 5: any Python object, its large buffers left where they are."""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

from offload.errors import DeserializationError
from offload.serializers.base import Payload
from offload.serializers.describe import type_name
from offload.serializers.memory import alias

__all__ = ("Pickle",)

_SMALL = 4096
"""Buffers under this many bytes stay in the pickle."""


class Pickle:
    """What plain Celery's pickle delivers, and what cloudpickle can do beyond it.

    Decoding runs the code that the bytes ask for: only for apps that accept pickle.
    """

    name = "pickle"
    data_only = False

    def encode(self, value: Any) -> Payload | None:
        """Return *value* pickled, or None if it cannot be."""
        try:
            head, buffers = _dump(value, pickle.Pickler)
            by_value = b"__main__" in head
        except Exception:
            by_value = True
        if by_value:
            pickler = _by_value_pickler()
            if pickler is None:
                return None
            try:
                head, buffers = _dump(value, pickler)
            except Exception:
                return None
        return Payload(self.name, head, buffers, type_name(value))

    def decode(self, head: memoryview, buffers: Sequence[memoryview]) -> Any:
        """Return the value, its arrays built on the buffers."""
        try:
            return pickle.loads(head, buffers=buffers)
        except Exception as error:
            raise DeserializationError(
                f"pickle cannot read the value: {type(error).__name__}: {error}"
            ) from error


def _dump(value: Any, pickler_class: Callable[..., Any]) -> tuple[bytes, list[memoryview]]:
    buffers: list[memoryview] = []

    def out_of_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if view.nbytes < _SMALL:
            return True
        buffers.append(view)
        return False

    file = io.BytesIO()
    pickler = pickler_class(file, protocol=5, buffer_callback=out_of_band)
    if "numpy" in sys.modules:
        import numpy as np

        table = dict(getattr(pickler, "dispatch_table", copyreg.dispatch_table))
        table[np.ndarray] = _reduce_array
        pickler.dispatch_table = table
    pickler.dump(value)
    return file.getvalue(), buffers


def _reduce_array(array: Any) -> Any:
    """Reduce an array as numpy does, but so that it arrives writable.

    Plain Celery's pickle copies, and so read-only arrays arrive writable; with protocol
    5 they would stay read-only.
    """
    reduced = array.__reduce_ex__(5)
    rebuild, args = reduced[:2]
    if args and isinstance(args[0], pickle.PickleBuffer):
        view = args[0].raw()
        if view.readonly and view.nbytes:
            writable = alias(array.ctypes.data, view.nbytes, array)
            return rebuild, (pickle.PickleBuffer(writable), *args[1:]), *reduced[2:]
    return reduced


def _by_value_pickler() -> Callable[..., Any] | None:
    try:
        import cloudpickle
    except ImportError:
        return None

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc,name-defined,unused-ignore]
        """Cloudpickle's, where a worker's own ``__main__`` goes before the one sent."""

        def reducer_override(self, obj: Any) -> Any:
            if getattr(obj, "__module__", None) == "__main__" and _in_main(obj):
                return _from_main, (obj.__qualname__, cloudpickle.dumps(obj, protocol=5))
            return super().reducer_override(obj)

    return Pickler


def _in_main(obj: Any) -> bool:
    name = getattr(obj, "__qualname__", None)
    return isinstance(name, str) and _main(name) is obj


def _main(qualname: str) -> Any:
    found: Any = sys.modules.get("__main__")
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _from_main(qualname: str, by_value: bytes) -> Any:
    """Return what plain pickle would find in ``__main__``, else the one that was sent."""
    found = _main(qualname)
    return found if found is not None else pickle.loads(by_value)
