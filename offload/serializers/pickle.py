"""Pickle, protocol 5: any Python object, with large buffers out of band."""

from __future__ import annotations

import copyreg
import functools
import io
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import FunctionType
from typing import Any

from offload.errors import DeserializationError, OffloadError
from offload.serializers.base import CachedFunction, Code, Payload, alias
from offload.text import type_name

_SMALL = 4096
"""Buffers with fewer bytes stay in band."""

_CODE = (type, FunctionType, CachedFunction)
_CONVERTED = (memoryview, io.TextIOWrapper)
"""Types that cloudpickle would change, to bytes or StringIO."""


class Pickle:
    """Serializer for any object: uses plain pickle if possible, else cloudpickle.

    Decoding runs code chosen by the bytes, so it is only for apps that accept pickle.
    """

    name = "pickle"
    data_only = False

    def __init__(self, code: Code | None = None) -> None:
        self._code = code

    def encode(self, value: Any, *, as_celery: bool = False) -> Payload | None:
        """Pickle *value*; return None if that is impossible.

        Args:
            value: any object.
            as_celery: make it arrive as from plain Celery instead of as sent, which differs for
                arrays in a foreign byte order.
        """
        code = self._code
        plain: Payload | None = None
        try:
            head, buffers = _dump(value, functools.partial(_plain_pickler, as_celery=as_celery))
        except Exception:
            named = False
        else:
            plain = Payload(self.name, head, buffers, type_name(value))
            named = code is not None and code.named_in(head)
            if not named and b"__main__" not in head:
                return plain
        # Objects of __main__ that can't be pickled by value are pickled by name, as in plain
        # pickle, since the worker may run the same script. Shipped code never is.
        fallback = None if named else plain
        pickler = _by_value_pickler(code, as_celery=as_celery)
        if pickler is None:
            return fallback
        try:
            head, buffers = _dump(value, pickler)
        except OffloadError:
            if fallback is None:
                raise
            return fallback
        except Exception:
            return fallback
        return Payload(self.name, head, buffers, type_name(value), pickler.ships_code)

    def decode(self, head: memoryview, buffers: Sequence[memoryview]) -> Any:
        """Return the value; its arrays use the buffers' memory. Raises DeserializationError."""
        try:
            with self._code.loading() if self._code is not None else nullcontext():
                return pickle.loads(head, buffers=buffers)
        except OffloadError:
            raise
        except Exception as error:
            advice = ""
            if isinstance(error, ModuleNotFoundError):
                advice = (
                    "; install it here, or ship the class from the sender (docs/how-to/classes.md)"
                )
            raise DeserializationError(
                f"pickle cannot read the value: {type(error).__name__}: {error}{advice}"
            ) from error


def _dump(value: Any, make_pickler: Callable[..., Any]) -> tuple[bytes, list[memoryview]]:
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
    make_pickler(file, protocol=5, buffer_callback=out_of_band).dump(value)
    return file.getvalue(), buffers


def _plain_pickler(*args: Any, as_celery: bool, **kwargs: Any) -> pickle.Pickler:
    pickler = pickle.Pickler(*args, **kwargs)
    pickler.dispatch_table = _table(copyreg.dispatch_table, as_celery=as_celery)
    return pickler


def _table(reducers: Mapping[type, Any], *, as_celery: bool) -> dict[type, Any]:
    table = dict(reducers)
    if "numpy" in sys.modules:
        import numpy as np

        table[np.ndarray] = functools.partial(_reduce_array, as_celery=as_celery)
    return table


def _reduce_array(array: Any, *, as_celery: bool) -> Any:
    """Reduce an array without copying it, so that it arrives as from plain Celery.

    Plain Celery's older protocol copies arrays, which makes them writable and converts them to the
    machine's byte order. numpy's own reduction for protocol 5 does neither, and copies times.
    """
    import numpy as np

    from offload.serializers.library_internals import array_maker
    from offload.serializers.numpy import flat_bytes

    dtype = array.dtype
    swaps = not dtype.isnative
    if dtype.hasobject or not dtype.itemsize or (as_celery if swaps else array.nbytes < _SMALL):
        return array.__reduce__()
    if not array.nbytes:
        return np.zeros, (array.shape, dtype)
    view, order = flat_bytes(array)
    if view.readonly:
        view = alias(array.ctypes.data, view.nbytes, array)
    # Not of the view itself: see `alias`.
    return array_maker(), (pickle.PickleBuffer(view.obj), dtype, array.shape, order)


def _by_value_pickler(code: Code | None, *, as_celery: bool) -> Any:
    try:
        import cloudpickle
    except ImportError:
        return None

    table = _table(cloudpickle.Pickler.dispatch_table, as_celery=as_celery)
    for kind in _CONVERTED:
        table.pop(kind, None)

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc,name-defined,unused-ignore]
        """Pickler that prefers the worker's ``__main__`` to the one sent.

        It writes shipped code by name and hash.
        """

        dispatch_table = table
        ships_code = False

        def reducer_override(self, obj: Any) -> Any:
            if code is not None and isinstance(obj, _CODE):
                reduced = code.reduced(obj)
                if reduced is not None:
                    type(self).ships_code = True
                    return reduced
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
    """Return the object that plain pickle would find in ``__main__``; else the one sent."""
    found = _main(qualname)
    return found if found is not None else pickle.loads(by_value)
