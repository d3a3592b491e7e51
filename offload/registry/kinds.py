"""Objects that pickle doesn't find under a name: names of `typing`, constants of `dataclasses`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

from offload.registry.cpython_internals import dataclass_constant

__all__ = ("reduce_constant", "reduce_named")


def reduce_constant(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """Return how to pickle a constant that `dataclasses` knows by identity; None for others."""
    name = dataclass_constant(obj)
    return None if name is None else (_of_dataclasses, (name,))


def _of_dataclasses(name: str) -> Any:
    return getattr(dataclasses, name)


def reduce_named(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """Return how to pickle what `typing` only names: a NewType or a kind of type variable.

    None for anything else.
    """
    kind = type(obj)
    if kind is typing.TypeVar:
        variance = {"covariant": obj.__covariant__, "contravariant": obj.__contravariant__}
        args = (obj.__name__, *obj.__constraints__)
        return _named, (kind, obj.__module__, args, {"bound": obj.__bound__, **variance})
    if kind is typing.NewType:
        return _named, (kind, obj.__module__, (obj.__name__, obj.__supertype__))
    if kind is typing.ParamSpec or kind is getattr(typing, "TypeVarTuple", None):
        return _named, (kind, obj.__module__, (obj.__name__,))
    return None


def _named(
    kind: Any, module: str, args: tuple[Any, ...], options: Mapping[str, Any] | None = None
) -> Any:
    made = kind(*args, **(options or {}))
    made.__module__ = module
    return made


def _set_enum(cls: Any, state: Any) -> Any:
    """Fill in an enum that was stored before `offload.registry.by_value` took enums apart."""
    set_state, of_class, of_members = state
    set_state(cls, of_class)
    for name, attributes in of_members.items():
        vars(cls.__members__[name]).update(attributes)
    return cls
