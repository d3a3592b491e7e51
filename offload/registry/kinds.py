"""Kinds of objects that cloudpickle carries only in part, or not: enums, names of `typing`."""

from __future__ import annotations

import typing
from collections.abc import Callable
from enum import Enum
from typing import Any

__all__ = ("amended_enum", "reduce_named")

_MADE_ANEW = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})


def amended_enum(cls: type[Enum], reduced: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return how an enum is pickled, with the aliases of its members, and with what its
    ``__init__`` or ``__new__`` set on them: it is not called again.
    """
    make, (bases, name, qualname, _, *rest), (attributes, slots), *more, set_state = reduced
    members = {each: member._value_ for each, member in cls.__members__.items()}
    state = {
        each: {k: v for k, v in vars(member).items() if k not in _MADE_ANEW}
        for each, member in cls.__members__.items()
        if member.name == each
    }
    attributes = {k: v for k, v in attributes.items() if k not in members}
    return (
        make,
        (bases, name, qualname, members, *rest),
        (set_state, (attributes, slots), state),
        *more,
        _set_enum,
    )


def _set_enum(cls: type[Enum], state: Any) -> type[Enum]:
    set_state, of_class, of_members = state
    set_state(cls, of_class)
    for name, attributes in of_members.items():
        vars(cls.__members__[name]).update(attributes)
    return cls


def reduce_named(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """Return how to pickle what `typing` only names: a NewType, a ParamSpec, a TypeVarTuple.

    None for anything else.
    """
    kind = type(obj)
    if kind is typing.NewType:
        return _named, (kind, obj.__module__, (obj.__name__, obj.__supertype__))
    if kind is typing.ParamSpec or kind is getattr(typing, "TypeVarTuple", None):
        return _named, (kind, obj.__module__, (obj.__name__,))
    return None


def _named(kind: Any, module: str, args: tuple[Any, ...]) -> Any:
    made = kind(*args)
    made.__module__ = module
    return made
