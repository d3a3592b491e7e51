"""A glance at a value: is it small for certain?"""

from __future__ import annotations

from typing import Any

__all__ = ("certainly_small",)

_PER_CHARACTER = 12
"""No serializer writes a character longer: JSON takes 12 for one past the basic plane."""

_NUMBER = 32
_OVERHEAD = 64
_DEEPEST = 4


def certainly_small(value: Any, limit: int, native: str) -> bool:
    """Return whether *value* surely is carried by *native*, in at most *limit* bytes.

    For every argument of every task: it takes well under a microsecond for scalars, and
    stops at the first sign that a container is large. False means that nothing is known.
    """
    kind = type(value)
    if kind is int:
        return _NUMBER <= limit and -0x8000000000000000 <= value <= 0x7FFFFFFFFFFFFFFF
    if kind is str:
        # Others may hold lone surrogates, which msgpack does not carry.
        return _OVERHEAD + _PER_CHARACTER * len(value) <= limit and value.isascii()
    if value is None or kind is bool or kind is float:
        return _NUMBER <= limit
    return _left(value, limit, native, _DEEPEST) >= 0


def _left(value: Any, limit: int, native: str, depth: int) -> int:
    """Return how much of *limit* would remain after writing *value*, or -1."""
    kind = type(value)
    if kind is str:
        return limit - _OVERHEAD - _PER_CHARACTER * len(value) if value.isascii() else -1
    if kind is int:
        fits = -0x8000000000000000 <= value <= 0x7FFFFFFFFFFFFFFF
        return limit - _NUMBER if fits else -1
    if value is None or kind is bool or kind is float:
        return limit - _NUMBER
    if kind is bytes:
        if native not in ("json", "pickle", "msgpack", "yaml"):
            return -1
        return limit - _OVERHEAD - _PER_CHARACTER * len(value)
    if not depth:
        return -1
    limit -= _OVERHEAD
    if limit < _NUMBER * len(value) if kind in (list, tuple, dict) else True:
        return -1
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or not key.isascii():
                return -1
            limit = _left(item, limit - _OVERHEAD - _PER_CHARACTER * len(key), native, depth - 1)
            if limit < 0:
                return -1
        return limit
    for item in value:
        limit = _left(item, limit, native, depth - 1)
        if limit < 0:
            return -1
    return limit
