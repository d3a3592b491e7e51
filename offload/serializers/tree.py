"""Values as sent, without pickle: containers, scalars, and arrays or frames within them.

For what the message's own serializer cannot carry. The head is JSON that spells out
the value's structure; large bytes stay out of it, in the buffers. Reading it back
runs no code but this package's, and makes only the types that stand in it.

A node is a JSON scalar or list for what that is, or an object of one key, which is
a tag, for everything else::

    [1, {"tuple": ["a", {"float": "nan"}]}, {"numpy": {...}}]

Tags of other packages' types are read and written by the module that knows them,
which is imported when the first one comes by.

An object that stands in several places of a value arrives as several.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import math
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson

from offload.errors import DeserializationError
from offload.serializers.base import Payload
from offload.serializers.describe import type_name
from offload.serializers.raw import Raw

__all__ = ("NotData", "Reader", "Tree", "Writer")

Node = Any

_MAX_DEPTH = 100
_INLINE = 256
"""Bytes up to this many stand in the head; also the least that a buffer is worth."""

_MODULES = {
    "numpy": ("offload.serializers.arrays", "numpy"),
    "pandas": ("offload.serializers.frames", "arrow"),
    "polars": ("offload.serializers.arrow", "arrow"),
    "pyarrow": ("offload.serializers.arrow", "arrow"),
}
"""Package, which is also the tag: the module for its types, and the extra it needs."""

_RAW = Raw()


class NotData(Exception):
    """A value, or something in it, that only pickle could carry.

    Attributes:
        reason: what is wrong with it, as ``it is a generator``.
        path: where in the value it stands, as ``['rows'][3]``.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def below(self, step: Any) -> NotData:
        """Return the same, seen from one container further out."""
        return NotData(self.reason, f"[{step!r:.40}]{self.path}")


class Tree:
    """Lists, tuples, dicts, sets and scalars of exactly Python's types; numpy's arrays
    and scalars; pandas', polars' and Arrow's tables and columns."""

    name = "tree"
    data_only = True

    def encode(self, value: Any) -> Payload | None:
        """Return *value* serialised; raises NotData where it holds something else."""
        writer = Writer()
        head = orjson.dumps(writer.node(value))
        return Payload(self.name, head, writer.buffers, type_name(value))

    def decode(self, head: memoryview, buffers: Sequence[memoryview]) -> Any:
        """Return the value, its arrays and frames built on the buffers."""
        try:
            return Reader(buffers).value(orjson.loads(head))
        except DeserializationError:
            raise
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise DeserializationError(
                f"tree cannot read the value: {type(error).__name__}: {error}"
            ) from error


class Writer:
    """Turns values into nodes, and gathers what stays outside of them.

    Attributes:
        buffers: the memory that the nodes written so far refer to.
    """

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []
        self._depth = 0

    def node(self, value: Any) -> Node:
        """Return the node for *value*."""
        write = _WRITERS.get(type(value))
        if write is not None:
            return write(self, value)
        package = type(value).__module__.partition(".")[0]
        if package in _MODULES:
            module = importlib.import_module(_MODULES[package][0])
            return {package: module.write(value, self)}
        raise NotData(f"it is of type {type_name(value)}")

    def buffer(self, view: memoryview) -> Node:
        """Return a reference to the bytes of *view*, which is flat and of format ``B``."""
        if view.nbytes <= _INLINE:
            return base64.b64encode(view).decode()
        self.buffers.append(view)
        return len(self.buffers) - 1

    def items(self, values: Sequence[Any]) -> list[Node]:
        """Return the nodes for the items of a container."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise NotData(f"it is nested more than {_MAX_DEPTH} deep, or in itself")
        nodes = []
        for i, value in enumerate(values):
            try:
                nodes.append(self.node(value))
            except NotData as error:
                raise error.below(i) from None
        self._depth -= 1
        return nodes


class Reader:
    """Turns nodes back into values. Nodes may come from anyone."""

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._buffers: list[memoryview | None] = list(buffers)

    def value(self, node: Node) -> Any:
        """Return the value of *node*."""
        if type(node) is list:
            return [self.value(n) for n in node]
        if type(node) is not dict:
            return node
        [(tag, body)] = node.items()
        read = _READERS.get(tag)
        if read is not None:
            return read(self, body)
        if tag not in _MODULES:
            raise DeserializationError(f"tree cannot read {tag[:40]!r}")
        name, extra = _MODULES[tag]
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise DeserializationError(
                f'reading this value needs {error.name}: pip install "offload[{extra}]"'
            ) from error
        return module.read(body, self)

    def buffer(self, reference: Node) -> memoryview:
        """Return the bytes that a node refers to, writable.

        Each buffer once: otherwise a small head could ask for endless copies of one.
        """
        if type(reference) is str:
            return memoryview(bytearray(base64.b64decode(reference, validate=True)))
        if type(reference) is not int or not 0 <= reference < len(self._buffers):
            raise ValueError("no such buffer")
        buffer, self._buffers[reference] = self._buffers[reference], None
        if buffer is None:
            raise ValueError("a buffer is used twice")
        return buffer


# -- writing ----------------------------------------------------------------------------


def _write_itself(writer: Writer, value: Any) -> Node:
    return value


def _write_int(writer: Writer, value: int) -> Node:
    return value if -(1 << 63) <= value < 1 << 64 else {"int": hex(value)}


def _write_float(writer: Writer, value: float) -> Node:
    return value if math.isfinite(value) else {"float": repr(value)}


def _write_str(writer: Writer, value: str) -> Node:
    if len(value) <= _INLINE:
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:
            pass
        else:
            return value
    return _write_raw(writer, value)


def _write_raw(writer: Writer, value: Any) -> Node:
    payload = _RAW.encode(value)
    if payload is None:
        raise NotData(f"it is a {type_name(value)} of an unusual kind")
    return {"raw": [payload.head.decode(), writer.buffer(payload.buffers[0])]}


def _write_list(writer: Writer, value: list[Any]) -> Node:
    return writer.items(value)


def _write_tuple(writer: Writer, value: tuple[Any, ...]) -> Node:
    return {"tuple": writer.items(value)}


def _write_dict(writer: Writer, value: dict[Any, Any]) -> Node:
    keys = writer.items(list(value))
    try:
        return {"dict": [keys, writer.items(list(value.values()))]}
    except NotData as error:
        position, _, rest = error.path[1:].partition("]")
        raise NotData(error.reason, f"[{list(value)[int(position)]!r:.40}]{rest}") from None


def _write_set(writer: Writer, value: set[Any] | frozenset[Any]) -> Node:
    # Sorted by what they look like written, as sets have no order of their own.
    return {type(value).__name__: sorted(writer.items(list(value)), key=orjson.dumps)}


def _write_complex(writer: Writer, value: complex) -> Node:
    return {"complex": [_write_float(writer, value.real), _write_float(writer, value.imag)]}


def _write_text(writer: Writer, value: Any) -> Node:
    return {type(value).__name__: str(value)}


def _write_timedelta(writer: Writer, value: timedelta) -> Node:
    return {"timedelta": [value.days, value.seconds, value.microseconds]}


def _write_date(writer: Writer, value: date) -> Node:
    return {"date": [value.year, value.month, value.day]}


def _write_time(writer: Writer, value: time) -> Node:
    zone = writer.node(value.tzinfo)
    parts = [value.hour, value.minute, value.second, value.microsecond]
    return {"time": [parts, zone, value.fold]}


def _write_datetime(writer: Writer, value: datetime) -> Node:
    day = [value.year, value.month, value.day]
    parts = [*day, value.hour, value.minute, value.second, value.microsecond]
    return {"datetime": [parts, writer.node(value.tzinfo), value.fold]}


def _write_timezone(writer: Writer, value: timezone) -> Node:
    if value is timezone.utc:
        return {"timezone": []}
    offset, name = (*value.__getinitargs__(), None)[:2]  # type: ignore[attr-defined]
    delta = [offset.days, offset.seconds, offset.microseconds]
    return {"timezone": [delta] if name is None else [delta, writer.node(name)]}


def _write_zoneinfo(writer: Writer, value: ZoneInfo) -> Node:
    if value.key is None or ZoneInfo(value.key) is not value:
        raise NotData("it is a ZoneInfo that does not come from the time zone database")
    return {"ZoneInfo": value.key}


_WRITERS: dict[type, Callable[[Writer, Any], Node]] = {
    type(None): _write_itself,
    bool: _write_itself,
    int: _write_int,
    float: _write_float,
    str: _write_str,
    bytes: _write_raw,
    bytearray: _write_raw,
    memoryview: _write_raw,
    list: _write_list,
    tuple: _write_tuple,
    dict: _write_dict,
    set: _write_set,
    frozenset: _write_set,
    complex: _write_complex,
    Decimal: _write_text,
    UUID: _write_text,
    timedelta: _write_timedelta,
    date: _write_date,
    time: _write_time,
    datetime: _write_datetime,
    timezone: _write_timezone,
    ZoneInfo: _write_zoneinfo,
}


# -- reading ----------------------------------------------------------------------------


def _read_int(reader: Reader, body: Any) -> int:
    return int(_text(body), 16)


def _read_float(reader: Reader, body: Any) -> float:
    if body not in ("nan", "inf", "-inf"):
        raise ValueError("not such a float")
    return float(body)


def _read_raw(reader: Reader, body: Any) -> Any:
    head, reference = body
    return _RAW.decode(memoryview(_text(head).encode()), [reader.buffer(reference)])


def _read_dict(reader: Reader, body: Any) -> dict[Any, Any]:
    keys, values = body
    if len(keys) != len(values):
        raise ValueError("keys without values")
    return dict(zip(reader.value(keys), reader.value(values), strict=True))


def _read_complex(reader: Reader, body: Any) -> complex:
    real, imag = map(reader.value, body)
    if type(real) is not float or type(imag) is not float:
        raise ValueError("not a complex")
    return complex(real, imag)


def _read_time(reader: Reader, body: Any) -> time:
    parts, zone, fold = body
    return time(*parts, tzinfo=reader.value(zone), fold=fold)


def _read_datetime(reader: Reader, body: Any) -> datetime:
    parts, zone, fold = body
    return datetime(*parts, tzinfo=reader.value(zone), fold=fold)


def _read_timezone(reader: Reader, body: Any) -> tzinfo:
    if not body:
        return timezone.utc
    delta, *name = body
    return timezone(timedelta(*delta), *map(reader.value, name))


def _text(body: Any) -> str:
    if type(body) is not str:
        raise TypeError("not a text")
    return body


_READERS: dict[str, Callable[[Reader, Any], Any]] = {
    "int": _read_int,
    "float": _read_float,
    "raw": _read_raw,
    "tuple": lambda reader, body: tuple(reader.value(list(body))),
    "dict": _read_dict,
    "set": lambda reader, body: set(reader.value(list(body))),
    "frozenset": lambda reader, body: frozenset(reader.value(list(body))),
    "complex": _read_complex,
    "Decimal": lambda reader, body: Decimal(_text(body)),
    "UUID": lambda reader, body: UUID(_text(body)),
    "timedelta": lambda reader, body: timedelta(*body),
    "date": lambda reader, body: date(*body),
    "time": _read_time,
    "datetime": _read_datetime,
    "timezone": _read_timezone,
    "ZoneInfo": lambda reader, body: ZoneInfo(_text(body)),
}

assert issubclass(binascii.Error, ValueError)
