"""Encode plain values as bytes, so that different values have different encodings.

Each encoding starts with a tag and the length or count of what follows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

__all__ = ("ATOMS", "begin", "tagged", "text")


def tagged(tag: bytes, content: bytes) -> bytes:
    return b"%b %d\0%b" % (tag, len(content), content)


def text(tag: bytes, content: str) -> bytes:
    return tagged(tag, content.encode("utf-8", "surrogatepass"))


def begin(tag: bytes, count: int) -> bytes:
    """Return the header of *count* values."""
    return b"%b[%d]\0" % (tag, count)


def _int(value: int) -> bytes:
    return tagged(b"int", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


ATOMS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"none\0",
    bool: lambda value: b"true\0" if value else b"false\0",
    type(...): lambda _: b"ellipsis\0",
    type(NotImplemented): lambda _: b"not implemented\0",
    int: _int,
    float: lambda value: b"float\0" + struct.pack(">d", value),
    complex: lambda value: b"complex\0" + struct.pack(">dd", value.real, value.imag),
    str: lambda value: text(b"text", value),
    bytes: lambda value: tagged(b"bytes", value),
}
"""Encoders of values without parts."""
