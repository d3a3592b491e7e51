"""Pickle a class or function by value, and load it.

`offload.classes.reducers` reduces classes and functions, including importable ones. Other shipped
classes are pickled by name and hash, so that each is a single class everywhere. The Celery app and
its tasks become those of the loading process. cloudpickle and pickle handle everything else.

A class is recreated from its current state, because Python doesn't keep the keywords of a class
statement (``class Plugin(Base, tag=4)``). That state includes what shipped metaclasses and
``__init_subclass__`` methods did when the class was defined, such as adding it to a registry, so
they don't run again. Those of libraries do.
"""

from __future__ import annotations

import functools
import inspect
import io
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import EnumMeta
from importlib import import_module
from types import CellType, FunctionType, ModuleType
from typing import Any, Protocol

import cloudpickle

from offload.classes import reducers
from offload.classes.library_internals import CachedFunction, is_dispatching
from offload.classes.reducers import (
    Functions,
    reduce_class,
    reduce_constant,
    reduce_dispatching,
    reduce_dispatching_method,
    reduce_named,
)
from offload.classes.scope import (
    UNNAMED_TYPES,
    Scope,
    describe_app_part,
    find_object,
    loading_for,
    own,
)
from offload.classes.versions import ClassVersion, label
from offload.errors import CodeRefused, SerializationError
from offload.stores.processes import PerProcess
from offload.text import reason_of

Ships = Callable[[type], bool]
"""Returns whether a class is shipped rather than imported."""

_HOOK = "__init_subclass__"
_by_value_lock = PerProcess(threading.RLock)


def _check_creation(cls: type, ships: Ships) -> None:
    """Raise SerializationError if recreating *cls* requires keywords for a library's hook.

    A hook may also refuse a class that has no attributes yet; only running it would show that.
    """
    if issubclass(type(cls), EnumMeta):  # enums are recreated by `make_enum`
        return
    name, bases = cls.__name__, cls.__bases__
    definer = next(each for each in cls.__mro__[1:] if _HOOK in vars(each) and not ships(each))
    _check(cls, getattr(definer, _HOOK))
    meta = _library_of(type(cls), ships)
    _check(cls, meta.__prepare__, name, bases)
    _check(cls, meta.__new__, meta, name, bases, {})
    _check(cls, meta.__init__, cls, name, bases, {})


@contextmanager
def _without_shipped_hooks(args: tuple[Any, ...], ships: Ships) -> Iterator[tuple[Any, ...]]:
    """Disable shipped hooks of class creation in this thread; yield adjusted *args*.

    Args:
        args: metaclass, name, bases, and so on; for an enum, bases and so on.
    """
    meta, *rest = args
    bases = meta
    if isinstance(meta, type):
        bases = rest[1]
        if any(map(ships, meta.__mro__)):
            args = (_Maker(meta, _library_of(meta, ships)), *rest)
    resolved = types.resolve_bases(bases)
    classes = dict.fromkeys(each for base in resolved for each in base.__mro__)
    hooks = {each: vars(each)[_HOOK] for each in classes if _HOOK in vars(each) and ships(each)}
    for each, hook in hooks.items():
        type.__setattr__(each, _HOOK, _passing(each, hook))
    try:
        yield args
    finally:
        for each, hook in hooks.items():
            type.__setattr__(each, _HOOK, hook)


def _library_of(meta: type, ships: Ships) -> Any:
    return next(each for each in meta.__mro__ if not ships(each))


class _Maker:
    """Creates classes of a shipped metaclass with the library metaclass that it inherits from."""

    def __init__(self, meta: type, library: Any) -> None:
        self._meta = meta
        self._library = library
        self.__prepare__ = library.__prepare__

    def __call__(self, name: str, bases: tuple[type, ...], names: dict[str, Any]) -> Any:
        made = self._library.__new__(self._meta, name, bases, names)
        if isinstance(made, self._meta):
            self._library.__init__(made, name, bases, names)
        return made


def _passing(cls: Any, hook: Any) -> Any:
    """Return an ``__init_subclass__`` that does nothing in this thread, but runs in others."""
    thread = threading.get_ident()

    def passing(subclass: type, /, **keywords: Any) -> None:
        if threading.get_ident() == thread:
            super(cls, subclass).__init_subclass__(**keywords)
        else:
            hook.__get__(None, subclass)(**keywords)

    return classmethod(passing)


def _check(cls: type, hook: Callable[..., Any], *args: Any) -> None:
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # not implemented in Python
        return
    try:
        signature.bind(*args)
    except TypeError as exc:
        raise SerializationError(
            f"{cls.__module__}.{cls.__qualname__} cannot be shipped: {hook.__qualname__} requires "
            f"more than name, bases, and namespace ({exc}): give its keywords defaults, and keep "
            "what they set as attributes of the class"
        ) from None


class Loader(Protocol):
    """Provides the versions that a pickle refers to.

    Attributes:
        registry: the class registry that loaded code refers to.
        app: the Celery app that loaded code refers to; None for the current one.
    """

    @property
    def registry(self) -> Any: ...

    @property
    def app(self) -> Any: ...

    def load(self, name: str, code_hash: str) -> Any:
        """Return a version."""

    def declare(self, name: str, code_hash: str, obj: Any) -> Any:
        """Declare a version that is still being read, so that it can refer to itself.

        Return the object to use. That is another one if this version is in a cycle, and loading a
        version that it needs has already declared it.
        """


_loader: ContextVar[Loader | None] = ContextVar("offload_loader", default=None)


@contextmanager
def loading(loader: Loader) -> Iterator[None]:
    """Within this context, unpickling finds versions with *loader*."""
    token, app_token = _loader.set(loader), loading_for.set(loader.app)
    try:
        yield
    finally:
        _loader.reset(token)
        loading_for.reset(app_token)


def reduce_pair(pair: ClassVersion) -> tuple[Callable[..., Any], ClassVersion]:
    """Reduce a class or function to its name and hash."""
    return shipped, pair


def dump(
    obj: Any, pair: ClassVersion, scope: Scope, pair_of: Callable[[Any], ClassVersion]
) -> bytes:
    """Pickle *obj* by value.

    Args:
        pair: its name and hash.
        scope: what else is pickled by value.
        pair_of: returns the name and hash of a shipped class that *obj* refers to.

    Raises SerializationError if *obj* depends on something that can't be pickled.
    """
    file = io.BytesIO()
    if isinstance(obj, type):
        _check_creation(obj, scope.__contains__)
    try:
        with _by_value(scope):
            _Pickler(file, obj, pair, scope, pair_of).dump(obj)
    except SerializationError:
        raise
    except Exception as exc:
        raise SerializationError(f"{pair[0]} cannot be shipped: {reason_of(exc)}") from None
    return file.getvalue()


def load(content: bytes, loader: Loader) -> Any:
    """Unpickle what `dump` wrote. This runs its code, so check first that it is trusted."""
    with loading(loader):
        return pickle.loads(content)


def shipped(name: str, code_hash: str) -> Any:
    """Return a version that a pickle refers to; unpickling calls this."""
    return _current().load(name, code_hash)


def _current() -> Loader:
    loader = _loader.get()
    if loader is None:
        raise CodeRefused(
            "this pickle needs a shipped class, and is read without a class registry; "
            "read it as an argument or result of a task, in an app with Offload"
        )
    return loader


def own_registry() -> Any:
    """Return the registry that loads the current pickle."""
    return _current().registry


def _skeleton(name: str, code_hash: str, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    loader = _current()
    with _without_shipped_hooks(args, loader.registry.ships_by_value) as given:
        made = make(*given)
    return loader.declare(name, code_hash, made)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc,name-defined,unused-ignore]
    def __init__(
        self,
        file: io.BytesIO,
        root: Any,
        pair: ClassVersion,
        scope: Scope,
        pair_of: Callable[[Any], ClassVersion],
    ) -> None:
        super().__init__(file, protocol=5)
        self._root = root
        self._pair = pair
        self._scope = scope
        self._pair_of = pair_of
        self._functions = Functions(label(pair))

    def reducer_override(self, obj: Any) -> Any:
        write = _REDUCERS.get(type(obj))
        if write is not None:
            return write(obj)
        celery = describe_app_part(obj)
        if celery is not None:
            return own, celery
        if isinstance(obj, FunctionType):
            return self._function(obj)
        if isinstance(obj, CellType):
            return self._functions.reduce_cell(obj) or super().reducer_override(obj)
        if isinstance(obj, ModuleType) and sys.modules.get(obj.__name__) is obj:
            by_value = obj in self._scope
            return super().reducer_override(obj) if by_value else (import_module, (obj.__name__,))
        if not isinstance(obj, type):
            named = reduce_named(obj)
            if named is not None and self._scope.includes(obj.__module__):
                return named
            return reduce_constant(obj) or super().reducer_override(obj)
        if obj is self._root:
            make, args, state, set_state = reduce_class(obj)
            return _skeleton, (*self._pair, make, args), state, None, None, set_state
        if obj in self._scope:
            return reduce_pair(self._pair_of(obj))
        name = UNNAMED_TYPES.get(obj)
        return super().reducer_override(obj) if name is None else (_of_types, (name,))

    def _function(self, function: FunctionType) -> Any:
        if is_dispatching(function):
            return reduce_dispatching(function)
        if function is not self._root and self._scope.is_apart(function):
            return reduce_pair(self._pair_of(function))
        if function not in self._scope:
            return super().reducer_override(function)
        make, args, state, set_state = self._functions.reduce(function)
        return make, args, state, None, None, set_state


def _of_types(name: str) -> Any:
    return getattr(types, name)


@contextmanager
def _by_value(scope: Scope) -> Iterator[None]:
    """Within this context, make cloudpickle pickle the modules in *scope* by value."""
    with _by_value_lock.get():
        before = cloudpickle.list_registry_pickle_by_value()
        modules = [sys.modules[m] for m in scope.modules - before if m in sys.modules]
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in modules:
                cloudpickle.unregister_pickle_by_value(module)


def cached_by(obj: Any) -> Any:
    """Return the function that *obj* caches with `functools.lru_cache`; None for other objects."""
    if not isinstance(obj, CachedFunction):
        return None
    function = obj.__wrapped__
    return function if isinstance(function, FunctionType) else None


def reduce_cached(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Reduce a function wrapped by `functools.lru_cache`."""
    return _cached, (dict(obj.cache_parameters()), obj.__wrapped__)


def _cached(parameters: dict[str, Any], function: Any) -> Any:
    existing = find_object(function.__module__, function.__qualname__)
    if cached_by(existing) is function:
        return existing
    return functools.lru_cache(**parameters)(function)


def _cached_property(function: Any, name: str | None) -> Any:
    made = functools.cached_property(function)
    made.attrname = name
    return made


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    CachedFunction: reduce_cached,
    functools.singledispatchmethod: reduce_dispatching_method,
    functools.cached_property: lambda it: (_cached_property, (it.func, it.attrname)),
}


# Stored versions and messages refer to functions by the names of former modules.
_scope = sys.modules[Scope.__module__]
for _former, _module in {
    "classes.apps": _scope,
    "registry.apps": _scope,
    "registry.by_value": reducers,
    "registry.functions": reducers,
    "registry.kinds": reducers,
    "registry.pickling": sys.modules[__name__],
}.items():
    sys.modules[f"offload.{_former}"] = _module
