"""Serializer of bytes-like objects and text, which are stored as their own bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pickle import PickleBuffer
from typing import Any

from offload.errors import DeserializationError
from offload.serializers.base import Payload, utf8

__all__ = ("Raw",)

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
