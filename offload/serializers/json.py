"""JSON by orjson, for values where it delivers exactly what Celery's JSON would."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import isfinite
from typing import Any

import orjson

from offload.errors import DeserializationError
from offload.serializers.base import Payload
from offload.serializers.describe import type_name

__all__ = ("Json", "is_plain")

_MAX_DEPTH = 200
"""Below orjson's own limit of 254. It also ends the walk through a cycle."""

_SCALARS = frozenset({str, int, float, bool, type(None)})
_TYPES = _SCALARS | {list, tuple, dict}


class Json:
    """Lists, tuples and dicts of exactly JSON's types.

    Keys keep the order in which they stand, as they do in plain Celery; so two dicts
    that differ only in order are two contents.
    """

    name = "json"
    data_only = True

    def encode(self, value: Any) -> Payload | None:
        """Return *value* as JSON if Celery's JSON would deliver the same, else None."""
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


def is_plain(value: Any) -> bool:
    """Return whether *value* holds nothing that orjson and Celery's JSON see differently.

    Walks level by level rather than item by item, so that nearly all of it runs in C.
    What orjson refuses by itself (wide ints, lone surrogates) is not looked for.
    """
    level: Any = (value,)
    for _ in range(_MAX_DEPTH):
        kinds = set(map(type, level))
        if not kinds <= _TYPES:
            return False
        if float in kinds:
            floats = level if kinds == {float} else [v for v in level if type(v) is float]
            if not all(map(isfinite, floats)):
                return False
        if kinds <= _SCALARS:
            return True
        # An object that stands in several places is looked at once a level, so a cycle
        # cannot make the walk grow.
        lists = {id(v): v for v in level if type(v) is list or type(v) is tuple}.values()
        dicts = {id(v): v for v in level if type(v) is dict}.values()
        if dicts and not _are_plain(dicts):
            return False
        if len(lists) == 1 and not dicts:
            [level] = lists
        else:
            level = list(chain(*lists, *map(dict.values, dicts)))
    return False


def _are_plain(dicts: Any) -> bool:
    """Return whether keys are strings, and no dict is one that kombu gives a meaning."""
    if set(map(type, chain.from_iterable(dicts))) - {str}:
        return False
    return not any(len(d) == 2 and "__type__" in d and "__value__" in d for d in dicts)
