"""Serializers for bytes and text, which are stored unchanged, and for plain JSON."""

from __future__ import annotations

import marshal
import struct
from collections.abc import Sequence
from itertools import chain, compress, repeat
from math import inf, isfinite
from operator import is_
from typing import Any

import orjson

from offload.errors import DeserializationError, SerializationError
from offload.serializers.base import Payload, utf8
from offload.text import type_name

_MAX_DEPTH = 200
"""Maximum depth, below orjson's limit of 254. It also ends the walk through a cycle."""
MANY = 50
"""With more containers than this, serializing a value is faster than inspecting each of them."""
_DATA_ONLY = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)
_SCALARS = frozenset({str, int, float, bool, type(None)})
_CONTAINERS = frozenset({list, tuple, dict})
SCALARS = _SCALARS | {bytes}
"""Types of values that don't contain other values."""
_LONG = 1000  # characters; longer text isn't encoded just to measure it

_FORMATS = frozenset("bBhHiIlLqQnNfd?c") | {"@" + c for c in "bBhHiIlLqQnNfd?c"}
"""The formats that memoryview.cast() supports."""


class Raw:
    """Serializer for bytes, bytearray, memoryview, and str (even with lone surrogates).

    The head is the type's name; a memoryview's head also contains its format and shape. A
    memoryview arrives contiguous and writable.
    """

    name = "raw"
    data_only = True

    def encode(self, value: Any) -> Payload | None:
        """Serialize *value*; return None if it is of another type or of a subclass."""
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
        """Serialize a contiguous *value* as bytes, which is how msgpack delivers it."""
        return Payload(self.name, b"bytes", [_flat(memoryview(value))], "bytes")

    def decode(self, head: memoryview, buffers: Sequence[memoryview]) -> Any:
        """Return the value; a memoryview shares the buffer, and other types copy it once.

        Raises DeserializationError.
        """
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
    if not view.nbytes:
        return memoryview(b"")
    return view.cast("B") if view.format in _FORMATS else memoryview(view.tobytes())


def _shaped(buffer: memoryview, form: str, dimensions: str) -> Any:
    shape = [int(n) for n in dimensions.split(",")] if dimensions else []
    if form not in _FORMATS or any(n < 0 for n in shape):
        raise ValueError("format or shape")
    cast_it: Any = buffer.cast
    if 0 in shape and not buffer.nbytes:
        return cast_it(form)  # cast() doesn't accept a shape for an empty buffer
    size = struct.calcsize(form)
    for n in shape:
        size *= n
    if size != buffer.nbytes:
        raise ValueError("size")
    return cast_it(form, shape)


class Json:
    """Serializer for lists, tuples, and dicts that contain only JSON's types.

    Keys keep their order, as in plain Celery, so two dicts that differ only in order have different
    digests.
    """

    name = "json"
    data_only = True

    def encode(self, value: Any) -> Payload | None:
        """Serialize *value*; return None if Celery's JSON would deliver something else."""
        return self.write(value) if is_plain(value) else None

    def write(self, value: Any) -> Payload | None:
        """Encode a value that `is_plain` accepts; see `encode`."""
        try:
            text = orjson.dumps(value)
        except (TypeError, ValueError, RecursionError):
            return None  # it contains an int of more than 64 bits, or a lone surrogate
        return Payload(self.name, b"", [memoryview(text)], type_name(value))

    def decode(self, head: memoryview, buffers: Sequence[memoryview]) -> Any:
        """Return the value. Raises DeserializationError."""
        if len(head) or len(buffers) != 1:
            raise DeserializationError("not what json writes")
        try:
            return orjson.loads(buffers[0])
        except ValueError as error:
            raise DeserializationError(f"json cannot read the value: {error}") from error


def encode_scalar(value: Any) -> tuple[str, bytes, bytes] | None:
    """Serialize a value of `SCALARS` like `Registry.encode_exactly`, but faster.

    Return the serializer's name, the head, and the content; None if it is long or unusual.
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
    except (UnicodeEncodeError, TypeError):  # a lone surrogate, or an int of more than 64 bits
        return None


def is_plain(value: Any, types: frozenset[type] = _CONTAINERS, most: float = inf) -> bool:
    """Return whether *value* arrives the same through orjson as through Celery's JSON.

    Walks level by level rather than item by item, so that nearly everything runs in C. Doesn't
    check for what orjson refuses anyway: ints of more than 64 bits, and lone surrogates.

    Args:
        value: any object.
        types: types of containers that may occur in it.
        most: roughly, how many times larger sharing may make the JSON.

    Raises SerializationError for a container that occurs more often.
    """
    kind = type(value)
    if kind in _SCALARS:
        return kind is not float or isfinite(value)
    level: Any = (value,)
    tried, times = False, 1.0
    for _ in range(_MAX_DEPTH):
        kinds = set(map(type, level))
        if not kinds <= _SCALARS | types:
            return False
        if float in kinds and not _are_finite(_only(float, level, kinds)):
            return False
        if kinds <= _SCALARS:
            return True
        all_lists = [*_only(list, level, kinds), *_only(tuple, level, kinds)]
        all_dicts = _only(dict, level, kinds)
        lists, dicts = _distinct(all_lists), _distinct(all_dicts)
        times *= (len(all_lists) + len(all_dicts)) / (len(lists) + len(dicts))
        if times > most:
            raise SerializationError(
                f"this {type_name(value)} holds lists that occur in each other too often"
            )
        if len(lists) + len(dicts) > MANY and types is _CONTAINERS and not tried:
            tried = True
            if _is_ordinary(value):
                return True
        if dicts and not _are_plain(dicts):
            return False
        if len(lists) == 1 and not dicts:
            [level] = lists
        else:
            values = chain.from_iterable(map(dict.values, dicts))
            level = list(chain(chain.from_iterable(lists), values))
    return False


def is_data(value: Any) -> bool:
    """Return whether orjson certainly writes *value* without a conversion that an app defines.

    False means unknown. Takes the memory of its JSON.
    """
    return _as_data(value) is not None


def _as_data(value: Any) -> bytes | None:
    try:
        return orjson.dumps(value, option=_DATA_ONLY)
    except (TypeError, ValueError, RecursionError):
        return None


def _is_ordinary(value: Any) -> bool:
    """Return whether *value* certainly is plain. False means unknown.

    Only types that both orjson and marshal write are JSON's own. A NaN would be written as null.
    """
    text = _as_data(value)
    if text is None or b"null" in text or b'"__type__"' in text:
        return False
    del text  # so that there is one copy at a time
    try:
        marshal.dumps(value)
    except ValueError:
        return False
    return True


def _only(kind: type, level: Any, kinds: set[type]) -> Any:
    """Return the items of *level* that are of type *kind*; *kinds* are all types in it."""
    if kind not in kinds:
        return ()
    if len(kinds) == 1:
        return level
    return list(compress(level, map(is_, map(type, level), repeat(kind))))


def _distinct(values: Any) -> Any:
    """Return each object once, so that a cycle can't grow the walk."""
    if len(set(map(id, values))) == len(values):
        return values
    return list({id(v): v for v in values}.values())


def _are_finite(floats: Any) -> bool:
    # A NaN or infinity makes the sum non-finite. But a sum of finite floats may overflow, too.
    return isfinite(sum(floats)) or all(map(isfinite, floats))


def _are_plain(dicts: Any) -> bool:
    """Return whether keys are strings and no dict has a special meaning to kombu."""
    if set(map(type, chain.from_iterable(dicts))) != {str} and any(dicts):
        return False
    return not any("__type__" in d and "__value__" in d and len(d) == 2 for d in dicts)
