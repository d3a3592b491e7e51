"""A glance at a value: is it small for certain?"""

from __future__ import annotations

from typing import Any

__all__ = ("certainly_small",)

_CHARACTER = 12
"""No serializer writes a character longer: JSON takes 12 for one past the basic plane."""

_NUMBER = 32
_ITEM = 64
"""What quotes, tags and indents may add to an item."""

_DEEPEST = 4
_WIDEST = 64


def certainly_small(value: Any, limit: int, native: str) -> bool:
    """Return whether *value* surely is carried by *native*, in at most *limit* bytes.

    For every argument of every task: it takes a fraction of a microsecond for scalars,
    and stops at the first sign that a container is large. False means only that this
    glance does not tell.
    """
    return _left(value, limit, native, _DEEPEST) >= 0


def _left(value: Any, limit: int, native: str, depth: int) -> int:
    """Return how much of *limit* remains at least after writing *value*, or less than 0."""
    kind = type(value)
    if kind is int:
        wide = value > 0x7FFFFFFFFFFFFFFF or value < -0x8000000000000000
        return -1 if wide else limit - _NUMBER
    if kind is str:
        # Others may hold lone surrogates, which not every serializer carries.
        return limit - _ITEM - _CHARACTER * len(value) if value.isascii() else -1
    if value is None or kind is bool or kind is float:
        return limit - _NUMBER
    if kind is dict:
        if not depth or len(value) > _WIDEST:
            return -1
        limit -= _ITEM
        for key, item in value.items():
            if type(key) is not str or not key.isascii():
                return -1
            limit = _left(item, limit - _ITEM - _CHARACTER * len(key), native, depth - 1)
            if limit < 0:
                return -1
        return limit
    if kind is list or kind is tuple:
        if not depth or len(value) > _WIDEST:
            return -1
        limit -= _ITEM
        for item in value:
            limit = _left(item, limit - _ITEM, native, depth - 1)
            if limit < 0:
                return -1
        return limit
    if kind is bytes and native in ("json", "pickle", "msgpack", "yaml"):
        return limit - _ITEM - _CHARACTER * len(value)
    return -1
