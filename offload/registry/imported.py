"""Functions of libraries, as versions that import them where they are needed.

Data must not choose what is imported. So a function that both sides can import, such as
``numpy.sum``, travels as a shipped function without parameters that returns it: stored, signed,
and subject to ``offload_code_allow`` under its name, as all shipped code is.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from types import FunctionType
from typing import Any

from offload.registry.scope import found

__all__ = ("importer", "resolve")

_MARK = "__imports__"
_TYPES_OF = frozenset({"builtins", "numpy"})
"""Modules of the types of functions: ``len``, ``json.dumps``, ``numpy.sum``, ``numpy.add``."""
_known: dict[int, tuple[Any, Any]] = {}  # by id: some have no hash; modules keep them alive


def importer(obj: Any) -> Callable[[], Any] | None:
    """Return the function to be shipped in place of *obj*; None if it cannot be imported."""
    kept, getter = _known.get(id(obj), (None, None))
    if kept is obj and getter is not None:
        return getter  # type: ignore[no-any-return]
    if isinstance(obj, type) or not callable(obj) or type(obj).__module__ not in _TYPES_OF:
        return None
    module = getattr(obj, "__module__", None)
    name: Any = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", "")
    if not isinstance(module, str) or module == "__main__" or found(module, name) is not obj:
        return None
    getter = _getter(module, name)
    _known[id(obj)] = obj, getter
    return getter  # type: ignore[no-any-return]


def resolve(getter: Any) -> Any:
    """Return the object that a loaded version imports; raises TypeError for other versions."""
    if not isinstance(getter, FunctionType) or getattr(getter, _MARK, None) is not True:
        raise TypeError("a version that imports nothing")
    obj = getter()
    _known[id(obj)] = obj, getter  # sent back, it is that version
    return obj


def _getter(module: str, name: str) -> Any:
    def get():  # type: ignore[no-untyped-def]  # noqa: ANN202 (annotations are hashed)
        return attrgetter(name)(import_module(module))

    get.__module__, get.__qualname__ = module, name
    get.__name__ = name.rpartition(".")[2]
    setattr(get, _MARK, True)
    return get
