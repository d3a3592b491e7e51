"""A class or function as bytes, by value, and back.

By cloudpickle, with these differences: what is importable here goes by value as well; other
classes that are shipped go by name and hash, so that they are the same classes everywhere; the
Celery app and its tasks are those of the process that reads; and what cloudpickle cannot carry
of the standard library's decorators is carried.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from types import CellType, FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, NamedTuple, Protocol

import cloudpickle

from offload.errors import CodeRefused, SerializationError
from offload.registry.apps import loading_for, own, what_of_celery
from offload.registry.creation import check_creation
from offload.registry.functions import (
    Cells,
    is_dispatching,
    reduce_dispatching,
    reduce_dispatching_method,
)
from offload.registry.kinds import amended_enum, reduce_named
from offload.registry.scope import Scope, found
from offload.serializers.advice import reason_of
from offload.stores.processes import PerProcess

__all__ = ("Loader", "Pair", "dump", "load", "loading", "own_registry", "reduce_pair")

Pair = tuple[str, str]
"""The name and hash of a version."""

_DESCRIPTORS = (MemberDescriptorType, GetSetDescriptorType)
_MADE_ANEW = frozenset({"_abc_impl", "__annotate_func__"})
"""Attributes of a class that Python makes with it."""

_by_value_lock = PerProcess(threading.RLock)


class Loader(Protocol):
    """Where versions come from while something is read that refers to them.

    Attributes:
        registry: the class registry that code refers to from now on.
        app: the Celery app that it refers to; None: the current one.
    """

    @property
    def registry(self) -> Any: ...

    @property
    def app(self) -> Any: ...

    def load(self, name: str, code_hash: str) -> Any:
        """Return a version."""

    def begin(self, name: str, code_hash: str, obj: Any) -> Any:
        """Take note of a version that is still being read, and that refers to itself.

        Return what it is from now on: what it needs may have needed it, and begun it before.
        """


_loader: ContextVar[Loader | None] = ContextVar("offload_loader", default=None)


@contextmanager
def loading(loader: Loader) -> Iterator[None]:
    """Within this, pairs are resolved by *loader*."""
    token, app_token = _loader.set(loader), loading_for.set(loader.app)
    try:
        yield
    finally:
        _loader.reset(token)
        loading_for.reset(app_token)


def reduce_pair(pair: Pair) -> tuple[Callable[..., Any], Pair]:
    """Return what pickle writes for the class or function of this name and hash."""
    return shipped, pair


def dump(obj: Any, pair: Pair, scope: Scope, pair_of: Callable[[Any], Pair]) -> bytes:
    """Return *obj* by value.

    Args:
        scope: what else goes by value.
        pair_of: gives the name and hash of a class that *obj* refers to and that is shipped.

    Raises SerializationError if it depends on what cannot be pickled.
    """
    file = io.BytesIO()
    if isinstance(obj, type):
        check_creation(obj)
    try:
        with _by_value(scope):
            _Pickler(file, obj, pair, scope, pair_of).dump(obj)
    except SerializationError:
        raise
    except Exception as exc:
        raise SerializationError(f"{pair[0]} cannot be shipped: {reason_of(exc)}") from None
    return file.getvalue()


def load(content: bytes, loader: Loader) -> Any:
    """Return what `dump` wrote. Runs its code: it is to be trusted before."""
    with loading(loader):
        return pickle.loads(content)


def shipped(name: str, code_hash: str) -> Any:
    """Return a version while something is read that refers to it."""
    return _current().load(name, code_hash)


def _current() -> Loader:
    loader = _loader.get()
    if loader is None:
        raise CodeRefused(
            "this was written with a class that is shipped, and is read without a class registry; "
            "read it as an argument or result of a task of an app with Offload"
        )
    return loader


def own_registry() -> Any:
    """Return the registry that loads what is being read."""
    return _current().registry


def _skeleton(name: str, code_hash: str, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return _current().begin(name, code_hash, make(*args))


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc,name-defined,unused-ignore]
    def __init__(
        self,
        file: io.BytesIO,
        root: Any,
        pair: Pair,
        scope: Scope,
        pair_of: Callable[[Any], Pair],
    ) -> None:
        super().__init__(file, protocol=5)
        self._root = root
        self._pair = pair
        self._scope = scope
        self._pair_of = pair_of
        self._cells = Cells()

    def reducer_override(self, obj: Any) -> Any:
        write = _REDUCERS.get(type(obj))
        if write is not None:
            return write(obj)
        celery = what_of_celery(obj)
        if celery is not None:
            return own, celery
        if isinstance(obj, FunctionType):
            if obj is not self._root and self._scope.is_apart(obj):
                return reduce_pair(self._pair_of(obj))
            return self._function(obj)
        if isinstance(obj, CellType):
            return self._cells.reduce(obj) or super().reducer_override(obj)
        if not isinstance(obj, type):
            named = reduce_named(obj)
            if named is not None and self._scope.includes(obj.__module__):
                return named
            return super().reducer_override(obj)
        if obj is self._root:
            reduced = super().reducer_override(obj)
            if issubclass(obj, Enum):
                reduced = amended_enum(obj, reduced)
            make, args, *rest = reduced
            args = _untracked(args)
            if not issubclass(obj, Enum):
                args, rest = _with_its_form(obj, args, rest)
            return (_skeleton, (*self._pair, make, args), *rest)
        if obj in self._scope:
            return reduce_pair(self._pair_of(obj))
        return super().reducer_override(obj)

    def _function(self, function: FunctionType) -> Any:
        if is_dispatching(function):
            return reduce_dispatching(function)
        made = super().reducer_override(function)
        return made if made is NotImplemented else self._cells.amended(function, made)


def _untracked(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what cloudpickle makes a class of, without the id by which it would take a class
    that this process has, and write into it.

    That id is the last but one of the arguments of ``_make_skeleton_class`` and of
    ``_make_skeleton_enum``.
    """
    *first, _tracker, extra = args
    return (*first, None, extra)


def _with_its_form(
    cls: type, args: tuple[Any, ...], rest: list[Any]
) -> tuple[tuple[Any, ...], list[Any]]:
    """Return what cloudpickle makes *cls* of, with what has to be known when it is made: its
    slots, without which its instances would get a ``__dict__``, and its qualified name; and
    with the attributes that cloudpickle leaves out because a base has the same.
    """
    *first, names, tracker, extra = args
    (attributes, slot_state), *more = rest
    attributes |= {
        name: value
        for name, value in vars(cls).items()
        if name not in attributes and name not in _MADE_ANEW and type(value) not in _DESCRIPTORS
    }
    names = {**names, "__qualname__": cls.__qualname__}
    if "__slots__" in attributes and NamedTuple not in attributes.get("__orig_bases__", ()):
        names["__slots__"] = attributes["__slots__"]
        attributes = {
            name: value
            for name, value in attributes.items()
            if name != "__slots__" and type(value) not in _DESCRIPTORS
        }
    return (*first, names, tracker, extra), [(attributes, slot_state), *more]


@contextmanager
def _by_value(scope: Scope) -> Iterator[None]:
    """Within this, cloudpickle takes what is in *scope*'s modules by value."""
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
    """Return the function that `functools.lru_cache` made *obj* of, None if it did not."""
    if not isinstance(obj, functools._lru_cache_wrapper):
        return None
    function = obj.__wrapped__
    return function if isinstance(function, FunctionType) else None


def reduce_cached(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return what pickle writes for what `functools.lru_cache` made."""
    return _cached, (dict(obj.cache_parameters()), obj.__wrapped__)


def _cached(parameters: dict[str, Any], function: Any) -> Any:
    own = found(function.__module__, function.__qualname__)
    if cached_by(own) is function:
        return own
    return functools.lru_cache(**parameters)(function)


def _cached_property(function: Any, name: str | None) -> Any:
    made = functools.cached_property(function)
    made.attrname = name
    return made


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    functools._lru_cache_wrapper: reduce_cached,
    functools.singledispatchmethod: reduce_dispatching_method,
    functools.cached_property: lambda it: (_cached_property, (it.func, it.attrname)),
}
