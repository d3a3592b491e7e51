"""Scope: what ships by value, and what the receiving process imports or has itself.

Celery objects in shipped code become those of the process that loads the code. So the settings of
an app, which hold passwords, are never stored.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from celery import Celery, Task, current_task
from celery.app import app_or_default
from celery.app.utils import Settings
from celery.backends.base import Backend

__all__ = (
    "UNNAMED_TYPES",
    "Scope",
    "describe_app_part",
    "describe_task",
    "find_object",
    "for_task",
    "import_path",
    "loading_for",
    "own",
    "own_app",
)

UNNAMED_TYPES = {kind: name for name, kind in vars(types).items() if isinstance(kind, type)}
"""Built-in types that pickle can't find by name, such as those of code and cells."""
_COMPILED = (type(str.upper), type(str.__len__))
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: created at run time, such as by a class statement


class Scope:
    """Modules whose classes and functions ship, and single objects of other modules.

    Objects in ``__main__`` always ship, and so do those that can't be imported under their own
    name: lambdas and what is defined within a function.

    Args:
        modules: names of modules; their submodules ship, too.
        single: names of classes and functions, such as ``shop.models.Filter``.
    """

    def __init__(self, modules: Iterable[str] = (), single: Iterable[str] = ()) -> None:
        self.modules = frozenset(modules)
        self.single = frozenset(single)

    def __contains__(self, obj: Any) -> bool:
        """Return whether the class, function, or module *obj* ships."""
        if isinstance(obj, types.ModuleType):
            return self.includes(obj.__name__)
        module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", "")
        if isinstance(obj, type) and not obj.__flags__ & _HEAP_TYPE:
            return False
        ships = self.includes(module) or self._names(module, name)
        if not ships and find_object(module, name) is obj:
            return False
        return not isinstance(obj, type) or not _is_compiled(obj)

    def is_apart(self, obj: Any) -> bool:
        """Return whether *obj* is a version of its own wherever other code refers to it: a
        shipped class, or a function that was registered by itself.
        """
        if isinstance(obj, types.FunctionType):
            module = obj.__module__
            return not self.includes(module) and self._names(module, obj.__qualname__)
        return isinstance(obj, type) and obj in self

    def _names(self, module: str | None, qualname: str) -> bool:
        return bool(self.single) and f"{module}.{qualname}" in self.single

    def includes(self, module: str | None) -> bool:
        """Return whether all of a module ships."""
        if module is None or module == "__main__":
            return True
        if not self.modules:
            return False
        parts = module.split(".")
        return any(".".join(parts[: i + 1]) in self.modules for i in range(len(parts)))

    def including(self, module: str | None) -> Scope:
        """Return this scope extended by *module*."""
        if module is None or module in self.modules:
            return self
        return Scope({*self.modules, module}, self.single)


def _is_compiled(cls: type) -> bool:
    """Return whether a class wasn't created by Python code; locks are such."""
    return any(
        type(value) in _COMPILED and value.__objclass__ is cls for value in vars(cls).values()
    )


def find_object(module: str | None, qualname: str) -> Any:
    """Return the object with this name in an imported module, or None."""
    at: Any = sys.modules.get(module or "")
    for part in qualname.split("."):
        at = getattr(at, part, None)
    return at


def import_path(obj: Any) -> list[str] | None:
    """Return where *obj* can be imported from: a module, as public as possible, and a name.

    Its own module may exist in one version of Python only, as ``pathlib._local`` does.
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


# -- the Celery app and task that code is loaded for

_KINDS = (Celery, Task, Settings, Backend)

loading_for: ContextVar[Any] = ContextVar("offload_loading_for", default=None)
"""The app that code is loaded for; None: the current one."""

for_task: ContextVar[str] = ContextVar("offload_code_for_task", default="")
"""The task, as ``name[id]``, whose arguments need code before it is Celery's current one."""


def describe_app_part(obj: Any) -> tuple[str, str] | None:
    """Return the kind and name of a Celery app, task, configuration, or backend; None for
    others.
    """
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
    """Return which task code is loaded for, as part of a log line; "" if for none."""
    if for_task.get():
        return f" for task {for_task.get()}"
    return f" for task {current_task.name}[{current_task.request.id}]" if current_task else ""
