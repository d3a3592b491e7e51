"""Functions as pickle is to write them, where cloudpickle's way loses something.

A variable that two functions share stays one, and so do globals that only the body of a class
within a function names. What `functools.singledispatch` made is made anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any

from offload.registry.code import written

__all__ = ("Cells", "is_dispatching", "reduce_dispatching", "reduce_dispatching_method")

_DISPATCHING = functools.singledispatch(lambda _: None).__code__  # type: ignore[attr-defined]


class Cells:
    """The variables of the functions of one pickle."""

    def __init__(self) -> None:
        self._shared: dict[int, CellType] = {}

    def reduce(self, cell: CellType) -> tuple[Any, ...] | None:
        """Return what pickle writes for a variable of a function; None if it is none.

        It is made empty: each function that has it says what is in it.
        """
        return (CellType, ()) if self._shared.get(id(cell)) is cell else None

    def amended(self, function: FunctionType, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what pickle is to write for a function, given what cloudpickle would."""
        make, (*first, closure), (attributes, state), *rest = reduced
        names = function.__globals__
        used = written(function.__code__).globals
        state = {
            **state,
            "__globals__": {
                **state["__globals__"],
                **{name: names[name] for name in used if name in names},
            },
        }
        if function.__closure__:
            closure = function.__closure__
            self._shared.update((id(cell), cell) for cell in closure)
            state["__closure__"] = tuple(map(_copied, closure))
        return (make, (*first, closure), (attributes, state), *rest)


def _copied(cell: CellType) -> CellType:
    try:
        return CellType(cell.cell_contents)
    except ValueError:
        return CellType()


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
