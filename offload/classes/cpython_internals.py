"""CPython and its standard library: undocumented parts that the class registry uses.

`tests/classes/test_cpython_internals.py` checks each of them against the running Python.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
import weakref
from collections.abc import Collection
from types import CodeType, FunctionType
from typing import Any

CachedFunction = type(functools.lru_cache(abs))
"""The type of functions that `functools.lru_cache` wraps."""

_GUARD_LOCALS = ("self", "key", "result")
_GUARD_CALLS = frozenset({"id", "get_ident", "add", "discard"})


def is_repr_guard(code: CodeType, name: str) -> bool:
    """Return whether the closure variable *name* of *code* only lists the reprs in progress.

    `dataclasses` and `reprlib.recursive_repr` wrap ``__repr__`` that way. Their wrapper is
    recognized by its shape, because copying a function may change its file name.
    """
    return (
        name == "repr_running"
        and "user_function" in code.co_freevars
        and code.co_varnames == _GUARD_LOCALS
        and _GUARD_CALLS.issubset(code.co_names)
    )


_DATACLASS_CONSTANTS = {
    id(getattr(dataclasses, name)): name
    for name in (
        "KW_ONLY",
        "MISSING",
        "_FIELD",
        "_FIELD_CLASSVAR",
        "_FIELD_INITVAR",
        "_HAS_DEFAULT_FACTORY",
    )
    if hasattr(dataclasses, name)
}


def dataclass_constant(obj: Any) -> str | None:
    """Return the name of a constant that `dataclasses` compares by identity; None for others."""
    return _DATACLASS_CONSTANTS.get(id(obj))


def abc_registry(cls: type) -> Collection[weakref.ref[type]]:
    """Return weak references to the classes registered as subclasses of an abstract class."""
    from _abc import _get_dump  # type: ignore[import-not-found]

    found: Collection[weakref.ref[type]] = _get_dump(cls)[0]
    return found


def protocol_init() -> Any:
    """Return the ``__init__`` that `typing` gives protocols and replaces on first use."""
    return vars(typing)["_no_init_or_replace_init"]


_DISPATCHING = functools.singledispatch(lambda _: None).__code__  # type: ignore[attr-defined]


def is_dispatching(function: Any) -> bool:
    """Return whether *function* was made by `functools.singledispatch`."""
    return isinstance(function, FunctionType) and function.__code__ is _DISPATCHING
