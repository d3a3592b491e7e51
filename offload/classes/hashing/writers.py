"""Writers for values of exact types: containers, descriptors, parts of types."""

from __future__ import annotations

import functools
import types
import typing
import weakref
from collections.abc import Callable
from typing import Any

from offload.classes.cpython_internals import CachedFunction
from offload.classes.hashing.code import written

__all__ = ("WRITERS", "NoContent")


class NoContent(Exception):
    """Something can't be hashed."""


def _container(tag: bytes) -> Callable[[Any, Any], None]:
    def write(walk: Any, value: Any) -> None:
        if not walk._again(value):
            walk._changes(value)
            walk._all(tag, value)

    return write


def _dict(walk: Any, value: dict[Any, Any]) -> None:
    if not walk._again(value):
        walk._changes(value)
        walk._all(b"dict", value.items())


def _set(walk: Any, value: set[Any]) -> None:
    if not walk._again(value):
        walk._changes(value)
        walk._unordered(b"set", value)


def _weak_set(walk: Any, value: Any) -> None:
    if not walk._again(value):
        walk._changes(value)
        walk._unordered(b"weak set", list(value))


def _proxy(walk: Any, value: types.MappingProxyType[Any, Any]) -> None:
    if not walk._again(value):
        walk._changes(value)
        walk._all(b"mapping", value.items())


def _property(walk: Any, value: property) -> None:
    walk._begin(b"property")
    walk._doc(value.__doc__)
    for part in (value.fget, value.fset, value.fdel):
        walk.value(part)


def _wrapped(walk: Any, value: Any) -> None:
    walk._text(b"method", type(value).__name__)
    walk.value(value.__func__)


def _method(walk: Any, value: types.MethodType) -> None:
    walk._begin(b"bound")
    walk.value(value.__func__)
    walk.value(value.__self__)


def _descriptor(walk: Any, value: Any) -> None:
    if value.__objclass__ in walk.scope and value.__name__ not in ("__dict__", "__weakref__"):
        raise NoContent(f"{value!r} is a slot under a different name")
    walk._text(b"descriptor", value.__name__)
    walk.value(value.__objclass__)


def _cached_property(walk: Any, value: Any) -> None:
    walk._begin(b"cached property")
    walk.value(value.func)


def _dispatch_method(walk: Any, value: Any) -> None:
    walk._begin(b"dispatching method")
    walk.value(value.func)
    walk.value(value.dispatcher)


def _lru_cache(walk: Any, value: Any) -> None:
    walk._begin(b"cached")
    walk._quietly(lambda: walk.value(value.cache_parameters()))
    walk.value(value.__wrapped__)


def _code(walk: Any, value: types.CodeType) -> None:
    walk._out.append(written(value, docs=walk.docs).content)


def _alias(walk: Any, value: types.GenericAlias) -> None:
    walk._begin(b"alias", int(getattr(value, "__unpacked__", False)))
    walk.value(value.__origin__)
    walk.value(value.__args__)


def _forward(walk: Any, value: typing.ForwardRef) -> None:
    walk._begin(b"forward")
    walk.value(value.__forward_arg__)


WRITERS: dict[type, Callable[[Any, Any], None]] = {
    tuple: lambda walk, value: walk._all(b"tuple", value),
    list: _container(b"list"),
    dict: _dict,
    set: _set,
    frozenset: lambda walk, value: walk._unordered(b"frozenset", value),
    weakref.WeakSet: _weak_set,
    memoryview: lambda walk, value: walk.value(value.tobytes()),
    types.MappingProxyType: _proxy,
    types.FunctionType: lambda walk, value: walk.function(value),
    types.CodeType: _code,
    types.CellType: lambda walk, value: walk.cell(value),
    types.ModuleType: lambda walk, value: walk._text(b"import", value.__name__),
    types.MethodType: _method,
    types.GetSetDescriptorType: _descriptor,
    types.MemberDescriptorType: _descriptor,
    property: _property,
    staticmethod: _wrapped,
    classmethod: _wrapped,
    functools.cached_property: _cached_property,
    functools.singledispatchmethod: _dispatch_method,
    CachedFunction: _lru_cache,
    types.GenericAlias: _alias,  # in Python 3.10 it pretends to be a class
    typing.ForwardRef: _forward,
}
