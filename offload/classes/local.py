"""Classes and functions of this process: registered, sent, and loaded ones, with their versions."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pkgutil import iter_modules
from types import FunctionType, ModuleType
from typing import Any

from offload.classes.hashing import Identity, identify
from offload.classes.scope import Scope, find_object
from offload.classes.versions import ClassVersion, name_of
from offload.errors import NotShippable, SerializationError
from offload.stores.processes import PerProcess
from offload.text import human_size

__all__ = (
    "AUTO",
    "MANUAL",
    "LoadedClasses",
    "LocalClasses",
    "Registrations",
    "check_shippable",
    "find_in_modules",
)

logger = logging.getLogger(__name__)

AUTO, MANUAL = "auto", "manual"
_KEPT = 8
"""Objects remembered per name: a notebook cell may define a class again and again."""
_MUCH = 1 << 20  # bytes hashed for every message that deserve a warning


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
        """Return ``auto`` or ``manual`` as *obj* was registered; "" if it wasn't."""
        kept = self.objects.get(name_of(obj))
        if kept is not None and kept[0] is obj:
            return kept[1]
        module = obj.__module__ or ""
        while module and find_object(obj.__module__, obj.__qualname__) is obj:
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


class LocalClasses:
    """Caches the hashes of classes for as long as nothing they depend on changes."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[Any, Scope, Identity], ...]] = {}
        self._warned: set[str] = set()
        self._sent: dict[str, tuple[Any, ...]] = {}

    def pair(self, obj: Any, scope: Scope) -> ClassVersion:
        """Return the name and hash of a class or function. Raises as `identify` does.

        A hash is valid for one scope object only, because a registration may change what ships.
        """
        name = name_of(obj)
        known = self._known.get(name, ())
        for each, its, identity in known:
            if each is obj and its is scope and identity.dependencies.holds():
                return name, identity.hash
        identity = identify(obj, scope)
        before = [its for each, in_, its in known if each is obj and in_ is scope]
        self._warn(name, identity, *before)
        others = [other for other in known if other[0] is not obj]
        self._known[name] = ((obj, scope, identity), *others[: _KEPT - 1])
        return name, identity.hash

    def _warn(self, name: str, identity: Identity, before: Identity | None = None) -> None:
        """Warn, once per name, about data that creates versions or takes long to hash."""
        if before is None or name in self._warned:
            return
        watch, changed = identity.dependencies, ""
        if identity.hash != before.hash:
            changed = watch.changed_since(before.dependencies)
        if changed:
            logger.warning(
                "%s has changed, so a new version of %s is sent; each change creates a version "
                "of its own in the store: keep changing data in instances or arguments",
                changed,
                name,
            )
        elif watch.unsure and identity.size > _MUCH:
            logger.warning(
                "%s is hashed again for every message (%s), because %s may change unnoticed: "
                "pass it as an argument, or keep it in a list, dict, or tuple of plain values",
                name,
                human_size(identity.size),
                watch.unsure,
            )
        else:
            return
        self._warned.add(name)

    def send(self, obj: Any) -> None:
        """Record that this process sent a class or function."""
        name = name_of(obj)
        others = [each for each in self._sent.get(name, ()) if each is not obj]
        self._sent[name] = (obj, *others[: _KEPT - 1])

    def was_sent(self, obj: Any) -> bool:
        """Return whether this process sent *obj*."""
        return any(each is obj for each in self._sent.get(name_of(obj), ()))

    def find(self, pair: ClassVersion, candidates: Iterable[Any], scope: Scope) -> Any:
        """Return the class or function that has exactly this version, or None.

        Names come from untrusted data, so only *candidates* and sent objects are considered.
        """
        for each in (*candidates, *self._sent.get(pair[0], ())):
            try:
                if self.pair(each, scope) == pair:
                    return each
            except (SerializationError, TypeError):
                continue
        return None


def find_in_modules(name: str, includes: Callable[[str], bool]) -> Any:
    """Return the class or function with this name in one of the included modules, or None.

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


class LoadedClasses:
    """Versions that this process has loaded: each is one object. Forked children share them."""

    def __init__(self) -> None:
        self._versions: dict[ClassVersion, Any] = {}
        self._pairs: dict[
            int, tuple[Any, ClassVersion]
        ] = {}  # by id: a metaclass may define __hash__
        self._lock = PerProcess(threading.RLock)

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Let one thread load at a time; others wait and then find its result."""
        with self._lock.get():
            yield

    def find(self, pair: ClassVersion) -> Any:
        """Return a loaded version, or None."""
        return self._versions.get(pair)

    def add(self, versions: Mapping[ClassVersion, Any]) -> None:
        """Add versions that refer to each other: all or none of them, even in a child that is
        forked meanwhile.
        """
        self._pairs.update({id(obj): (obj, pair) for pair, obj in versions.items()})
        self._versions.update(versions)

    def pair_of(self, obj: Any) -> ClassVersion | None:
        """Return the version that *obj* was loaded as; None if it wasn't loaded."""
        found = self._pairs.get(id(obj))
        return found[1] if found is not None and found[0] is obj else None

    def pairs(self) -> list[ClassVersion]:
        """Return all loaded versions."""
        return list(self._versions)
