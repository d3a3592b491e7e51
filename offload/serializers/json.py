"""JSON through orjson, for values that arrive exactly as from Celery's JSON."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, compress, repeat
from math import isfinite
from operator import is_
from typing import Any

import orjson

from offload.errors import DeserializationError
from offload.serializers.base import Payload
from offload.text import type_name

__all__ = ("Json", "is_plain")

_MAX_DEPTH = 200
"""Below orjson's own limit of 254. It also ends the walk through a cycle."""

_SCALARS = frozenset({str, int, float, bool, type(None)})
CONTAINERS = frozenset({list, tuple, dict})


class Json:
    """Lists, tuples, and dicts of exactly JSON's types.

    Keys keep their order, as in plain Celery; so two dicts that differ only in order are two
    contents.
    """

    name = "json"
    data_only = True

    def encode(self, value: Any) -> Payload | None:
        """Return *value* as JSON, or None if Celery's JSON would deliver something else."""
        if not is_plain(value):
            return None
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


def is_plain(value: Any, types: frozenset[type] = CONTAINERS) -> bool:
    """Return whether orjson and Celery's JSON deliver *value* as the same.

    Walks level by level rather than item by item, so that nearly all of it runs in C.
    Doesn't check for what orjson refuses anyway (wide ints, lone surrogates).

    Args:
        value: any object.
        types: the containers that may occur in it.
    """
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
