"""What goes along with a class by value, and what the receiving side is to import."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FunctionType
from typing import Any

__all__ = ("Scope",)

_COMPILED = (type(str.upper), type(str.__len__))
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or as if by one


class Scope:
    """The modules whose classes and functions are shipped, and single ones of other modules.

    What is in ``__main__``, and what cannot be found under its own name in its module
    (lambdas, what stands within a function), is shipped in any case.

    Args:
        modules: names of modules; their submodules are shipped, too.
        single: names of classes and functions, as ``shop.models.Filter``.
    """

    def __init__(self, modules: Iterable[str] = (), single: Iterable[str] = ()) -> None:
        self.modules = frozenset(modules)
        self.single = frozenset(single)

    def __contains__(self, obj: Any) -> bool:
        """Return whether the class, function or module *obj* is shipped."""
        if isinstance(obj, type(sys)):
            return self.includes(obj.__name__)
        module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", "")
        if isinstance(obj, type) and not obj.__flags__ & _HEAP_TYPE:
            return False
        if not (self.includes(module) or self._names(module, name)) and found(module, name) is obj:
            return False
        return not isinstance(obj, type) or not _is_compiled(obj)

    def is_apart(self, obj: Any) -> bool:
        """Return whether the class or function *obj* is a version of its own wherever something
        else refers to it. Of functions, those are the ones registered one by one.
        """
        if isinstance(obj, FunctionType):
            module = obj.__module__
            return not self.includes(module) and self._names(module, obj.__qualname__)
        return isinstance(obj, type) and obj in self

    def _names(self, module: str | None, qualname: str) -> bool:
        return bool(self.single) and f"{module}.{qualname}" in self.single

    def includes(self, module: str | None) -> bool:
        """Return whether all of a module is shipped."""
        if module is None or module == "__main__":
            return True
        if not self.modules:
            return False
        parts = module.split(".")
        return any(".".join(parts[: i + 1]) in self.modules for i in range(len(parts)))

    def including(self, module: str | None) -> Scope:
        """Return this scope and *module*."""
        if module is None or module in self.modules:
            return self
        return Scope({*self.modules, module}, self.single)


def _is_compiled(cls: type) -> bool:
    """Return whether a class was not made by Python's code, as that of locks."""
    return any(
        type(value) in _COMPILED and value.__objclass__ is cls for value in vars(cls).values()
    )


def found(module: str | None, qualname: str) -> Any:
    """Return what has this name in an imported module; None if there is nothing."""
    at: Any = sys.modules.get(module or "")
    for part in qualname.split("."):
        at = getattr(at, part, None)
    return at
