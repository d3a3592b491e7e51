"""Instances of shipped classes that plain Celery would send as something simpler."""

from __future__ import annotations

from typing import Any

from offload.serializers.base import Code

__all__ = ("holds_claimed",)

_SIMPLE = (str, bytes, int, float, list, tuple, dict)
"""What JSON and msgpack make of instances of their subclasses."""
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
_EXACT = frozenset({*_SIMPLE, *_CONTAINERS, bool, type(None)})


def holds_claimed(value: Any, code: Code) -> bool:
    """Return whether *value* is or holds an instance of a class that *code* claims, and that is
    a subclass of a simple type.
    """
    claims: dict[type, bool] = dict.fromkeys(_EXACT, False)
    waiting = [value]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        kind = type(each)
        claimed = claims.get(kind)
        if claimed is None:
            claimed = claims[kind] = issubclass(kind, _SIMPLE) and code.claims(kind)
        if claimed:
            return True
        if kind in _CONTAINERS and id(each) not in seen:
            seen.add(id(each))
            waiting += each
            if kind is dict:
                waiting += each.values()
    return False
