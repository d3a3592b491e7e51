"""Serializers of bytes and text, which are stored as they are, and of plain JSON."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain, compress, repeat
from math import isfinite
from operator import is_
from pickle import PickleBuffer
from typing import Any

import orjson

from offload.errors import DeserializationError
from offload.serializers.base import Payload, utf8
from offload.text import type_name

_MAX_DEPTH = 200
"""Below orjson's own limit of 254. It also ends the walk through a cycle."""
_SCALARS = frozenset({str, int, float, bool, type(None)})
_CONTAINERS = frozenset({list, tuple, dict})
SCALARS = _SCALARS | {bytes}
"""Types of values that contain no others."""
_LONG = 1000  # characters of a text that isn't encoded to find out how large it is

_FORMATS = frozenset("bBhHiIlLqQnNfd?c") | {"@" + c for c in "bBhHiIlLqQnNfd?c"}
"""The formats that memoryview.cast() supports."""


class Raw:
    """Serializer of bytes, bytearray, memoryview, and str (also with lone surrogates).

    The head is the type's name; a memoryview's head also has its format and shape. A memoryview
    arrives contiguous and writable.
    """

    name = "raw"
    data_only = True

    def encode(self, value: Any) -> Payload | None:
        """Return *value* serialized, or None if it is of another type or a subclass."""
        kind = type(value)
        if kind is bytes:
            return Payload(self.name, b"bytes", [memoryview(value)], "bytes")
        if kind is str:
            try:
                return Payload(self.name, b"str", [utf8(value)], "str")
            except UnicodeEncodeError:
                text = value.encode("utf-8", "surrogatepass")
                return Payload(self.name, b"str surrogatepass", [memoryview(text)], "str")
        if kind is bytearray:
            return Payload(self.name, b"bytearray", [memoryview(value)], "bytearray")
        if kind is memoryview and value.format in _FORMATS:
            shape = ",".join(map(str, value.shape))
            head = f"memoryview {value.format} {shape}".encode()
            flat = _flat(value) if value.c_contiguous else memoryview(value.tobytes())
            return Payload(self.name, head, [flat], "memoryview")
        return None

    def as_bytes(self, value: bytearray | memoryview) -> Payload:
        """Return a contiguous *value* serialized as bytes, as msgpack delivers it."""
        return Payload(self.name, b"bytes", [_flat(memoryview(value))], "bytes")

    def decode(self, head: memoryview, buffers: Sequence[memoryview]) -> Any:
        """Return the value: a memoryview shares the buffer; other types copy it once."""
        kind, *more = bytes(head[:1024]).decode("utf-8", "replace").split(" ")
        try:
            [buffer] = buffers
            if kind == "bytes" and not more:
                return bytes(buffer)
            if kind == "bytearray" and not more:
                return bytearray(buffer)
            if kind == "str" and more in ([], ["surrogatepass"]):
                return str(buffer, "utf-8", *more)
            if kind == "memoryview":
                return _shaped(buffer, *more)
        except (ValueError, TypeError) as error:
            raise DeserializationError(f"not a {kind[:20]} value: {error}") from error
        raise DeserializationError(f"raw cannot read {kind[:20]!r}")


def _flat(view: memoryview) -> memoryview:
    return PickleBuffer(view).raw() if view.nbytes else memoryview(b"")


def _shaped(buffer: memoryview, form: str, dimensions: str) -> Any:
    shape = [int(n) for n in dimensions.split(",")] if dimensions else []
    if form not in _FORMATS or any(n < 0 for n in shape):
        raise ValueError("format or shape")
    cast_it: Any = buffer.cast
    if 0 in shape and not buffer.nbytes:
        return cast_it(form)  # cast() can't give a shape to an empty buffer
    size = struct.calcsize(form)
    for n in shape:
        size *= n
    if size != buffer.nbytes:
        raise ValueError("size")
    return cast_it(form, shape)


class Json:
    """Lists, tuples, and dicts of exactly JSON's types.

    Keys keep their order, as in plain Celery; so two dicts that differ only in order are two
    contents.
    """

    name = "json"
    data_only = True

    def encode(self, value: Any) -> Payload | None:
        """Return *value* as JSON, or None if Celery's JSON would deliver something else."""
        return self.write(value) if is_plain(value) else None

    def write(self, value: Any) -> Payload | None:
        """Encode a value that `is_plain` accepts; see `encode`."""
        try:
            text = orjson.dumps(value)
        except (TypeError, ValueError, RecursionError):
            return None  # an int past 64 bits, a lone surrogate
        return Payload(self.name, b"", [memoryview(text)], type_name(value))

    def decode(self, head: memoryview, buffers: Sequence[memoryview]) -> Any:
        """Return the lists and dicts."""
        if len(head) or len(buffers) != 1:
            raise DeserializationError("not what json writes")
        try:
            return orjson.loads(buffers[0])
        except ValueError as error:
            raise DeserializationError(f"json cannot read the value: {error}") from error


def encode_scalar(value: Any) -> tuple[str, bytes, bytes] | None:
    """Return serializer, head, and content of a value of `SCALARS`, as `Registry.encode_exactly`
    writes it; None for one that is long or needs care.
    """
    kind = type(value)
    try:
        if kind is str:
            return ("raw", b"str", value.encode()) if len(value) < _LONG else None
        if kind is bytes:
            return ("raw", b"bytes", value) if len(value) < _LONG else None
        if kind is float and not isfinite(value):
            return None
        return "json", b"", orjson.dumps(value)
    except (UnicodeEncodeError, TypeError):  # a lone surrogate, an int past 64 bits
        return None


def is_plain(value: Any, types: frozenset[type] = _CONTAINERS) -> bool:
    """Return whether orjson and Celery's JSON deliver *value* as the same.

    Walks level by level rather than item by item, so that nearly all of it runs in C.
    Doesn't check for what orjson refuses anyway (wide ints, lone surrogates).

    Args:
        value: any object.
        types: the containers that may occur in it.
    """
    kind = type(value)
    if kind in _SCALARS:
        return kind is not float or isfinite(value)
    level: Any = (value,)
    for _ in range(_MAX_DEPTH):
        kinds = set(map(type, level))
        if not kinds <= _SCALARS | types:
            return False
        if float in kinds and not _are_finite(_only(float, level, kinds)):
            return False
        if kinds <= _SCALARS:
            return True
        lists = _distinct([*_only(list, level, kinds), *_only(tuple, level, kinds)])
        dicts = _distinct(_only(dict, level, kinds))
        if dicts and not _are_plain(dicts):
            return False
        if len(lists) == 1 and not dicts:
            [level] = lists
        else:
            values = chain.from_iterable(map(dict.values, dicts))
            level = list(chain(chain.from_iterable(lists), values))
    return False


def _only(kind: type, level: Any, kinds: set[type]) -> Any:
    """Return the items of *level* of one type; *kinds* are all types in it."""
    if kind not in kinds:
        return ()
    if len(kinds) == 1:
        return level
    return list(compress(level, map(is_, map(type, level), repeat(kind))))


def _distinct(values: Any) -> Any:
    """Return each object once, so that a cycle can't make the walk grow."""
    if len(set(map(id, values))) == len(values):
        return values
    return list({id(v): v for v in values}.values())


def _are_finite(floats: Any) -> bool:
    # A NaN or an infinity makes the sum one; a sum may overflow without any.
    return isfinite(sum(floats)) or all(map(isfinite, floats))


def _are_plain(dicts: Any) -> bool:
    """Return whether keys are strings and no dict has a special meaning to kombu."""
    if set(map(type, chain.from_iterable(dicts))) != {str} and any(dicts):
        return False
    return not any("__type__" in d and "__value__" in d and len(d) == 2 for d in dicts)
