"""Functions and methods that `functools.singledispatch` made: they are made again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

__all__ = ("is_dispatching", "reduce_dispatching", "reduce_dispatching_method")

_DISPATCHING = functools.singledispatch(lambda _: None).__code__  # type: ignore[attr-defined]


def is_dispatching(function: Any) -> bool:
    """Return whether `functools.singledispatch` made *function*."""
    return isinstance(function, FunctionType) and function.__code__ is _DISPATCHING


def reduce_dispatching(function: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return what pickle writes for what `functools.singledispatch` made."""
    return _dispatch, (dict(function.registry),)


def _dispatch(registry: dict[Any, Any]) -> Any:
    made = functools.singledispatch(registry[object])
    for cls, function in registry.items():
        made.register(cls, function)
    return made


def reduce_dispatching_method(method: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return what pickle writes for what `functools.singledispatchmethod` made."""
    return _dispatch_method, (method.func, method.dispatcher)


def _dispatch_method(function: Any, dispatcher: Any) -> Any:
    made = functools.singledispatchmethod(function)
    made.dispatcher = dispatcher
    return made
