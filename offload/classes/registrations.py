"""Registrations: which classes, functions, and modules ship, and when to push them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from importlib import import_module
from pkgutil import iter_modules
from types import FunctionType, ModuleType
from typing import Any

from offload.classes.scope import Scope, found
from offload.classes.versions import name_of
from offload.errors import NotShippable

__all__ = ("AUTO", "MANUAL", "Registrations", "check_shippable")

logger = logging.getLogger(__name__)

AUTO, MANUAL = "auto", "manual"


class Registrations:
    """Registered objects and modules; several registries may share them.

    Attributes:
        modules: registered modules by name, each ``auto`` or ``manual``.
        objects: registered classes and functions by name, with the same.
        scope: what ships by value. A registration replaces it.
    """

    def __init__(self) -> None:
        self.modules: dict[str, str] = {}
        self.objects: dict[str, tuple[Any, str]] = {}
        self.scope = Scope()

    def add(self, obj: Any, push: str) -> None:
        """Register a class, a function, or a module."""
        if isinstance(obj, ModuleType):
            self.modules[obj.__name__] = push
        else:
            self.objects[name_of(check_shippable(obj))] = (obj, push)
        self.scope = Scope(self.modules, self.objects)

    def find(self, name: str) -> Any:
        """Return the class or function registered under this name, or None."""
        return self.objects.get(name, (None, ""))[0]

    def all(self, is_shippable: Callable[[Any], bool]) -> list[Any]:
        """Return all registered classes and functions, and the shippable ones of modules."""
        here = [obj for obj, _ in self.objects.values()]
        for module in _with_submodules(self.modules):
            defined_there = [obj for obj in vars(module).values() if _is_of(obj, module.__name__)]
            here += filter(is_shippable, defined_there)
        return list({id(obj): obj for obj in here}.values())

    def used_modules(self) -> set[str]:
        """Return the modules in which something was registered."""
        return set(self.modules) | {obj.__module__ for obj, _ in self.objects.values()}

    def push_of(self, obj: Any) -> str:
        """Return ``auto`` or ``manual`` as *obj* was registered; "" if it wasn't."""
        kept = self.objects.get(name_of(obj))
        if kept is not None and kept[0] is obj:
            return kept[1]
        module = obj.__module__ or ""
        while module and found(obj.__module__, obj.__qualname__) is obj:
            if module in self.modules:
                return self.modules[module]
            module = module.rpartition(".")[0]
        return ""


def check_shippable(obj: Any) -> Any:
    """Return *obj*; raises NotShippable if it is neither a class nor a function."""
    if not isinstance(obj, (type, FunctionType)):
        raise NotShippable(f"expected a class or function, not a {type(obj).__name__}")
    return obj


def _with_submodules(names: Iterable[str]) -> list[ModuleType]:
    """Return modules and their submodules, by name; log those that can't be imported.

    A package's ``__main__`` is left out, because importing it may run a program.
    """
    found: dict[str, ModuleType] = {}
    waiting = list(names)
    while waiting:
        module = import_module(waiting.pop())
        found[module.__name__] = module
        for each in iter_modules(getattr(module, "__path__", ()), f"{module.__name__}."):
            if each.name in found or each.name.endswith(".__main__"):
                continue
            try:
                import_module(each.name)
            except Exception as exc:
                logger.warning("%s is left out, it cannot be imported: %r", each.name, exc)
            else:
                waiting.append(each.name)
    return [found[name] for name in sorted(found)]


def _is_of(obj: Any, module: str) -> bool:
    return isinstance(obj, (type, FunctionType)) and obj.__module__ == module
