"""Ship classes and functions in values by name and hash, and load them.

Data must not determine what is imported. So a library function that both sides can import, such as
``numpy.sum``, ships as a function without parameters that returns it. Like all shipped code, this
is stored, signed, and subject to ``offload_code_allow`` under its name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from operator import attrgetter
from types import FunctionType
from typing import Any

from offload.classes.pickling import cached_by, loading, reduce_cached, reduce_pair
from offload.classes.policy import OFF
from offload.classes.registry import ClassRegistry
from offload.classes.scope import Scope, advise_missing, find_object
from offload.classes.versions import ClassVersion, name_of
from offload.errors import DeserializationError

_MARK = "__imports__"
_TYPES_OF = frozenset({"builtins", "numpy"})
"""Modules of the types of functions: ``len``, ``json.dumps``, ``numpy.sum``, ``numpy.add``."""
_known: dict[int, tuple[Any, Any]] = {}  # by id, as some aren't hashable; modules keep them alive


def importer(obj: Any) -> Callable[[], Any] | None:
    """Return a function to ship instead of *obj*; None if *obj* can't be imported."""
    kept, getter = _known.get(id(obj), (None, None))
    if kept is obj and getter is not None:
        return getter  # type: ignore[no-any-return]
    if isinstance(obj, type) or not callable(obj) or type(obj).__module__ not in _TYPES_OF:
        return None
    module = getattr(obj, "__module__", None)
    if module is None and type(obj).__module__ == "numpy":  # ufuncs, before numpy 2.2
        module = "numpy"
    name: Any = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", "")
    if not isinstance(module, str) or module == "__main__" or find_object(module, name) is not obj:
        return None
    getter = _getter(module, name)
    _known[id(obj)] = obj, getter
    return getter  # type: ignore[no-any-return]


def resolve(getter: Any) -> Any:
    """Return the object that a loaded version imports.

    Raises TypeError for other versions, and DeserializationError if a module is missing.
    """
    if not isinstance(getter, FunctionType) or getattr(getter, _MARK, None) is not True:
        raise TypeError("this version imports nothing")
    try:
        obj = getter()
    except ModuleNotFoundError as exc:
        raise DeserializationError(
            f"{name_of(getter)} can't be imported here: {exc}; {advise_missing(exc)}"
        ) from exc
    _known[id(obj)] = obj, getter  # so that it ships as that version if it is sent back
    return obj


def _getter(module: str, name: str) -> Any:
    def get():  # type: ignore[no-untyped-def]  # noqa: ANN202 (annotations are hashed)
        return attrgetter(name)(import_module(module))

    get.__module__, get.__qualname__ = module, name
    get.__name__ = name.rpartition(".")[2]
    setattr(get, _MARK, True)
    return get


class Shipping:
    """The registry as serializers use it; implements `offload.serializers.base.Code`."""

    importer = staticmethod(importer)
    imported = staticmethod(resolve)

    def __init__(self, registry: ClassRegistry) -> None:
        self._registry = registry

    def shipped(self, obj: Any) -> ClassVersion | None:
        registry = self._registry
        if registry.policy.mode == OFF or not registry.ships_by_value(obj):
            return None
        if not registry.can_push and not registry.must_ship(obj):
            return None  # a worker without a key can't push; local classes are pickled as usual
        return registry.ship(obj)

    def must_ship(self, kind: type) -> bool:
        registry = self._registry
        return registry.policy.mode != OFF and registry.must_ship(kind)

    def advice(self, kind: type) -> str:
        package = kind.__module__.partition(".")[0]
        if self._registry.policy.mode == OFF or package in sys.stdlib_module_names:
            return ""
        if kind not in Scope([kind.__module__]):  # it is written in C
            return ""
        return f"register it: offload.classes.register({kind.__module__})"

    def reduced(self, obj: Any) -> tuple[Any, ...] | None:
        if isinstance(obj, (type, FunctionType)):
            pair = self.shipped(obj)
            return None if pair is None else reduce_pair(pair)
        wrapped = cached_by(obj)
        return None if wrapped is None or self.shipped(wrapped) is None else reduce_cached(obj)

    def named_in(self, pickled: bytes) -> bool:
        registry = self._registry
        return registry.policy.mode != OFF and any(
            module.encode() in pickled for module in registry.shipped_modules
        )

    @property
    def may_load(self) -> bool:
        return self._registry.policy.mode != OFF

    def check_name(self, name: str, code_hash: str) -> None:
        self._registry.check_name(name, code_hash)

    def is_version(self, cls: type) -> bool:
        return self._registry.is_version(cls)

    def load(self, name: str, code_hash: str) -> Any:
        return self._registry.load(name, code_hash)

    def loading(self) -> AbstractContextManager[None]:
        return loading(self._registry)
