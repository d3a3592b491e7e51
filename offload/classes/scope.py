"""The scope: what is registered and ships by value, and what the receiving process provides.

Celery objects in shipped code become those of the process that loads the code. So an app's
settings, which contain passwords, are never stored.
"""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from importlib import import_module
from itertools import accumulate
from pkgutil import iter_modules
from types import FunctionType, ModuleType
from typing import Any

from celery import Celery, Task, current_task
from celery.app import app_or_default
from celery.app.utils import Settings
from celery.backends.base import Backend

from offload.classes.versions import name_of
from offload.errors import NotShippable

logger = logging.getLogger(__name__)

AUTO, MANUAL = "auto", "manual"
UNNAMED_TYPES = {kind: name for name, kind in vars(types).items() if isinstance(kind, type)}
"""Built-in types that pickle can't find by name, such as the types of code and cells."""
_COMPILED = (type(str.upper), type(str.__len__))  # types of methods that are written in C
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: created at run time, such as by a class statement


class Scope:
    """Modules whose classes and functions ship, and single objects from other modules.

    Objects in ``__main__`` always ship, and so do objects that can't be imported under their own
    name: lambdas, and objects defined within a function.

    Args:
        modules: names of modules, whose submodules also ship.
        single: names of classes and functions, such as ``shop.models.Filter``. What a class defines
            ships, too.
    """

    def __init__(self, modules: Iterable[str] = (), single: Iterable[str] = ()) -> None:
        self.modules = frozenset(modules)
        self.single = frozenset(single)

    def __contains__(self, obj: Any) -> bool:
        """Return whether the class, function, or module *obj* ships."""
        if isinstance(obj, ModuleType):
            return self.includes(obj.__name__)
        module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", "")
        if isinstance(obj, type) and not obj.__flags__ & _HEAP_TYPE:
            return False
        ships = self.includes(module) or not self.single.isdisjoint(_enclosing(f"{module}.{name}"))
        if not ships and find_object(module, name) is obj:
            return False
        return not isinstance(obj, type) or not _is_compiled(obj)

    def is_apart(self, obj: Any) -> bool:
        """Return whether *obj* is always a version of its own, even if other code refers to it.

        That is so for shipped classes, and for functions that were registered individually.
        """
        if isinstance(obj, FunctionType):
            module = obj.__module__
            return not self.includes(module) and f"{module}.{obj.__qualname__}" in self.single
        return isinstance(obj, type) and obj in self

    def includes(self, module: str | None) -> bool:
        """Return whether a whole module ships."""
        if module is None or module == "__main__":
            return True
        if not self.modules:
            return False
        packages = accumulate(module.split("."), "{}.{}".format)
        return not self.modules.isdisjoint(packages)

    def including(self, module: str | None) -> Scope:
        """Return this scope extended by *module*."""
        if module is None or module in self.modules:
            return self
        return Scope({*self.modules, module}, self.single)


def _is_compiled(cls: type) -> bool:
    """Return whether a class has methods of its own that are written in C, as that of locks has."""
    return any(
        type(value) in _COMPILED and value.__objclass__ is cls for value in vars(cls).values()
    )


def _enclosing(name: str) -> Iterator[str]:
    """Yield a dotted name and those of what encloses it, such as the class of a method."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def find_object(module: str | None, qualname: str) -> Any:
    """Return the object with this name in an imported module; None if there is none."""
    found: Any = sys.modules.get(module or "")
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def import_path(obj: Any) -> list[str] | None:
    """Return a module, as public as possible, and a name by which *obj* can be imported.

    The object's own module may exist in only one version of Python, such as ``pathlib._local``.
    """
    if isinstance(obj, type) and obj in UNNAMED_TYPES:
        return ["types", UNNAMED_TYPES[obj]]
    module, qualname = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        return None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        if find_object(".".join(parts[:end]), qualname) is obj:
            return [".".join(parts[:end]), qualname]
    return None


def advise_missing(error: ModuleNotFoundError) -> str:
    """Return advice on a module that shipped code imports and this process lacks."""
    return f"install it here, or ship it from the sender: offload.classes.register({error.name})"


def find_in_modules(name: str, includes: Callable[[str], bool]) -> Any:
    """Return the class or function with this name in one of the included modules; None if missing.

    Runs no code of modules or classes.
    """
    parts = name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:i])
        found: Any = sys.modules.get(module) if includes(module) else None
        for part in parts[i:]:
            is_open = issubclass(type(found), (ModuleType, type))
            found = vars(found).get(part) if is_open else None
        kinds = (type, FunctionType)
        if issubclass(type(found), kinds) and found.__module__ == module:
            return found
    return None


# -- what is registered


class Registrations:
    """Registered objects and modules; several registries may share them.

    Attributes:
        modules: registered modules by name, with ``auto`` or ``manual``.
        objects: registered classes and functions by name, with ``auto`` or ``manual``.
        scope: what ships by value. Each registration replaces it by a new scope.
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
        """Return the class or function registered under this name; None if there is none.

        It may also be defined by a registered class. Runs no code of classes.
        """
        outer = self._outer(name)
        found = self.objects[outer][0] if outer else None
        for part in filter(None, name.removeprefix(outer).split(".")):
            found = vars(found).get(part) if isinstance(found, type) else None
            if isinstance(found, (staticmethod, classmethod)):
                found = found.__func__
        is_found = isinstance(found, (type, FunctionType)) and name_of(found) == name
        return found if is_found else None

    def _outer(self, name: str) -> str:
        """Return *name*, or the name of an enclosing class, whichever was registered, or ""."""
        return next((outer for outer in _enclosing(name) if outer in self.objects), "")

    def all(self, is_shippable: Callable[[Any], bool]) -> list[Any]:
        """Return registered classes and functions, and the shippable ones of registered modules.

        Imports the submodules of these.
        """
        here = [obj for obj, _ in self.objects.values()]
        for module in _with_submodules(self.modules):
            defined_there = (
                obj
                for obj in list(vars(module).values())
                if isinstance(obj, (type, FunctionType)) and obj.__module__ == module.__name__
            )
            here += filter(is_shippable, defined_there)
        return list({id(obj): obj for obj in here}.values())

    def used_modules(self) -> set[str]:
        """Return the modules in which something was registered."""
        return set(self.modules) | {obj.__module__ for obj, _ in self.objects.values()}

    def push_of(self, obj: Any) -> str:
        """Return how *obj* was registered: ``auto`` or ``manual``; "" if it wasn't."""
        name = name_of(obj)
        if self.find(name) is obj:
            return self.objects[self._outer(name)][1]
        module = obj.__module__ or ""
        while module and find_object(obj.__module__, obj.__qualname__) is obj:
            if module in self.modules:
                return self.modules[module]
            module = module.rpartition(".")[0]
        return ""


def check_shippable(obj: Any) -> Any:
    """Return *obj*. Raises NotShippable if it is neither a class nor a function."""
    if not isinstance(obj, (type, FunctionType)):
        raise NotShippable(f"expected a class or function, not a {type(obj).__name__}")
    return obj


def _with_submodules(names: Iterable[str]) -> list[ModuleType]:
    """Return modules and their submodules, given the names; log those that can't be imported.

    Omits a package's ``__main__``, because importing it may run a program.
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
                logger.warning("skipping %s, which can't be imported: %r", each.name, exc)
            else:
                waiting.append(each.name)
    return [found[name] for name in sorted(found)]


# -- the Celery app and task that code is loaded for

_KINDS = (Celery, Task, Settings, Backend)

loading_for: ContextVar[Any] = ContextVar("offload_loading_for", default=None)
"""The app that code is loaded for; None for the current one."""

for_task: ContextVar[str] = ContextVar("offload_code_for_task", default="")
"""The task, as ``name[id]``, whose arguments are being read: it isn't Celery's current one yet."""


def describe_app_part(obj: Any) -> tuple[str, str] | None:
    """Return the kind and name of a Celery app, task, configuration, or backend; else None."""
    if isinstance(obj, type) or not isinstance(obj, _KINDS):
        return None
    if isinstance(obj, Task):
        return "task", obj.name
    if isinstance(obj, Celery):
        return "app", ""
    return ("conf", "") if isinstance(obj, Settings) else ("backend", "")


def own_app() -> Any:
    """Return the app that code is being loaded for."""
    app = loading_for.get()
    return app_or_default() if app is None else app


def own(what: str, name: str) -> Any:
    """Return this process's counterpart of an object that `describe_app_part` described."""
    app = own_app()
    if what == "app":
        return app
    return app.tasks[name] if what == "task" else getattr(app, what)


own.__module__ = "offload.classes.apps"  # as stored versions name it


def describe_task() -> str:
    """Name the task that code is loaded for, as the end of a log line; "" if there is none."""
    if for_task.get():
        return f" for task {for_task.get()}"
    return f" for task {current_task.name}[{current_task.request.id}]" if current_task else ""
