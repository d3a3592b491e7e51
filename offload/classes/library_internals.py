"""Private parts of Python and pydantic that are needed to ship classes.

`tests/classes/test_cpython_internals.py` and `tests/classes/test_pydantic_internals.py` check them
against the installed versions.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
import weakref
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from types import CodeType, FunctionType
from typing import Any

CachedFunction = type(functools.lru_cache(abs))
"""Type of the objects that `functools.lru_cache` returns."""

_GUARD_LOCALS = ("self", "key", "result")
_GUARD_CALLS = frozenset({"id", "get_ident", "add", "discard"})


def is_repr_guard(code: CodeType, name: str) -> bool:
    """Return whether the closure variable *name* of *code* only guards against recursive reprs.

    `dataclasses` and `reprlib.recursive_repr` wrap ``__repr__`` with such a guard. The wrapper is
    recognized by its code, because copying a function may change its file name.
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
    """Return the name of a constant that `dataclasses` compares by identity; else None."""
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


_MADE_BY_PYDANTIC = frozenset(
    {
        "__pydantic_complete__",
        "__pydantic_core_schema__",
        "__pydantic_fields_complete__",
        "__pydantic_parent_namespace__",
        "__pydantic_serializer__",
        "__pydantic_setattr_handlers__",
        "__pydantic_validator__",
        "__signature__",
    }
)
_COMPUTED = frozenset({"model_computed_fields", "__pydantic_computed_fields__"})
"""Attributes that repeat part of the decorators, which are hashed. Before pydantic 2.11, the first
use of a model completes the decorators, but not these attributes.
"""

_DERIVED = frozenset(
    {
        "annotation",
        "cls_ref",  # contains an address
        "evaluated",
        "return_type",
        "_attributes_set",
        "_complete",
        "_default_factory_takes_validated_data",
        "_original_annotation",
        "_original_assignment",
    }
)
"""Attributes of field and decorator descriptions that follow from annotations, which are hashed."""


def model_attributes(own: Mapping[str, Any]) -> AbstractSet[str]:
    """Return the attributes that pydantic derived from others, if *own* are those of a model."""
    if not ("__pydantic_decorators__" in own or "__pydantic_validator__" in own):
        return frozenset()
    renews = "__pydantic_setattr_handlers__" in own  # with the decorators, from pydantic 2.11 on
    return _MADE_BY_PYDANTIC if renews else _MADE_BY_PYDANTIC | _COMPUTED


def state_of(value: Any, state: Any) -> Any:
    """Return the part of *state*, the pickled state of *value*, that determines its behavior."""
    kind = type(value)
    if not kind.__module__.startswith("pydantic.") or not isinstance(state, (dict, tuple)):
        return state
    slots: dict[str, Any] = {}
    for each in state if isinstance(state, tuple) else (state,):
        slots |= each or {}
    return {name: part for name, part in slots.items() if name not in _DERIVED}
