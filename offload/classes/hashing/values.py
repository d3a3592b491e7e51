"""Hash containers, descriptors, instances, and class attributes.

Attributes that Python or pydantic derive from others are omitted. The `StructuralHasher` calls the
writers in this module, and passes itself as *hasher*.
"""

from __future__ import annotations

import copyreg
import functools
import logging
import pickle
import sys
import types
import typing
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from offload.classes.hashing.code import normalize, tagged
from offload.classes.library_internals import (
    CachedFunction,
    abc_registry,
    model_attributes,
    protocol_init,
    state_of,
)
from offload.text import reason_of, type_name

_UNCHANGED = (functools.partial, functools.partialmethod)
"""Immutable types, although their parts may be mutable."""
_VALUES = (tuple, str, bytes, int, float, complex, frozenset)


class NoContent(Exception):
    """Raised for an object that can't be hashed."""


# -- attributes of classes


def annotations_of(obj: Any) -> dict[str, Any]:
    """Return the annotations of *obj* itself.

    Since Python 3.14, annotations are code that runs on access; undefined names stay strings.
    """
    if sys.version_info >= (3, 14):
        import annotationlib

        found = annotationlib.get_annotations(obj, format=annotationlib.Format.FORWARDREF)
        return {
            k: v.__forward_arg__ if isinstance(v, annotationlib.ForwardRef) else v
            for k, v in found.items()
        }
    if isinstance(obj, type):
        return dict(vars(obj).get("__annotations__") or {})
    return dict(obj.__annotations__)


_DERIVED = frozenset(
    {
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__classdictcell__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__orig_bases__",
        "__parameters__",
        "__qualname__",
        "__slotnames__",
        "__static_attributes__",
        "__type_params__",
        "__weakref__",
        "_abc_impl",
    }
)
"""Attributes of any class that are encoded separately, or derived by Python."""
_ENUM = frozenset(
    {
        "_member_map_",
        "_member_names_",
        "_member_type_",
        "_value2member_map_",
        "_hashable_values_",
        "_unhashable_values_",
        "_unhashable_values_map_",
        "_value_repr_",
        "_use_args_",
        "_new_member_",
        "__new__",
        "_order_",
    }
)
"""Attributes of enums. An enum's own ``__new__`` is kept as ``__new_member__``."""
_PROTOCOL = frozenset(
    {
        "__callable_proto_members_only__",
        "__non_callable_proto_members__",
        "__protocol_attrs__",
    }
)


def attributes_of(cls: type) -> dict[str, Any]:
    """Return the attributes of *cls* itself that determine its behavior."""
    own = vars(cls)
    skipped = _DERIVED
    if "_member_map_" in own:
        skipped = skipped | _ENUM | own["_member_map_"].keys()
    if typing.Protocol in cls.__mro__:
        skipped |= _PROTOCOL
        if own.get("__init__") is _inherited(cls):
            skipped |= {"__init__"}  # set when the class is first instantiated
    skipped |= model_attributes(own)
    return {
        name: value
        for name, value in own.items()
        if name not in skipped
        and not (type(value) is types.MemberDescriptorType and _is_slot(cls, name, value))
    }


def _inherited(cls: type) -> Any:
    """Return the ``__init__`` that *cls* would have if no base were a protocol."""
    nothing = protocol_init()
    inits = (vars(base).get("__init__", nothing) for base in cls.__mro__[1:])
    return next(init for init in inits if init is not nothing)


def _is_slot(cls: type, name: str, value: types.MemberDescriptorType) -> bool:
    mangled = f"_{cls.__name__.lstrip('_')}{value.__name__}"
    return value.__objclass__ is cls and name in (value.__name__, mangled)


def members_of(cls: type) -> list[tuple[str, Any, dict[str, Any]]]:
    """Return the name, value, and attributes of each member of an enum, including aliases.

    Omits attributes that `Enum` sets, such as ``_value_`` and ``__objclass__``.
    """
    members: Mapping[str, Any] = vars(cls).get("_member_map_", {})
    return [
        (
            name,
            member._value_,
            {k: v for k, v in vars(member).items() if not (k.startswith("_") and k.endswith("_"))},
        )
        for name, member in members.items()
    ]


def subclasses_of(cls: type) -> list[type]:
    """Return the classes registered as subclasses of an abstract class."""
    if "_abc_impl" not in vars(cls):
        return []
    return [found for reference in abc_registry(cls) if (found := reference()) is not None]


# -- values of exact types

Writer = Callable[[Any, Any], None]


def _mutable(write: Writer) -> Writer:
    """Return a writer for objects that may change in place and may occur again."""

    def writer(hasher: Any, value: Any) -> None:
        if not hasher._again(value):
            hasher._changes(value)
            write(hasher, value)

    return writer


def _parts(tag: bytes, *names: str) -> Writer:
    """Return a writer for an object's attributes."""

    def writer(hasher: Any, value: Any) -> None:
        hasher._header(tag)
        for name in names:
            hasher.value(getattr(value, name))

    return writer


def _property(hasher: Any, value: property) -> None:
    hasher._header(b"property")
    hasher._doc(value.__doc__)
    for part in (value.fget, value.fset, value.fdel):
        hasher.value(part)


def _wrapped(hasher: Any, value: Any) -> None:
    hasher._text(b"method", type(value).__name__)
    hasher.value(value.__func__)


def _descriptor(hasher: Any, value: Any) -> None:
    if value.__objclass__ in hasher.scope and value.__name__ not in ("__dict__", "__weakref__"):
        raise NoContent(f"{value!r} is a slot under a different name")
    hasher._text(b"descriptor", value.__name__)
    hasher.value(value.__objclass__)


def _lru_cache(hasher: Any, value: Any) -> None:
    hasher._header(b"cached")
    hasher._quietly(hasher.value, value.cache_parameters())
    hasher.value(value.__wrapped__)


def _alias(hasher: Any, value: types.GenericAlias) -> None:
    hasher._header(b"alias", int(getattr(value, "__unpacked__", False)))
    hasher.value(value.__origin__)
    hasher.value(value.__args__)


WRITERS: dict[type, Writer] = {
    list: _mutable(lambda hasher, value: hasher._all(b"list", value)),
    dict: _mutable(lambda hasher, value: hasher._all(b"dict", value.items())),
    set: _mutable(lambda hasher, value: hasher._unordered(b"set", value)),
    frozenset: lambda hasher, value: hasher._unordered(b"frozenset", value),
    weakref.WeakSet: _mutable(lambda hasher, value: hasher._unordered(b"weak set", value)),
    memoryview: lambda hasher, value: hasher.value(value.tobytes()),
    types.MappingProxyType: _mutable(lambda hasher, value: hasher._all(b"mapping", value.items())),
    types.CodeType: lambda hasher, value: hasher._out.append(
        normalize(value, docs=hasher.docs).content
    ),
    types.ModuleType: lambda hasher, value: hasher._text(b"import", value.__name__),
    types.MethodType: _parts(b"bound", "__func__", "__self__"),
    types.GetSetDescriptorType: _descriptor,
    types.MemberDescriptorType: _descriptor,
    property: _property,
    staticmethod: _wrapped,
    classmethod: _wrapped,
    functools.cached_property: _parts(b"cached property", "func"),
    functools.singledispatchmethod: _parts(b"dispatching method", "func", "dispatcher"),
    CachedFunction: _lru_cache,
    types.GenericAlias: _alias,  # in Python 3.10, it looks like a class
    typing.ForwardRef: _parts(b"forward", "__forward_arg__"),
}


# -- instances


def write_instance(hasher: Any, value: Any) -> None:
    """Write an instance by its reduction for pickle."""
    if isinstance(value, typing.TypeVar):
        parts = value.__bound__, value.__constraints__, value.__covariant__, value.__contravariant__
        hasher._all(b"typevar", (value.__name__, *parts))
        return
    if isinstance(value, logging.Logger) and value.name == hasher._home:
        hasher._header(b"module's logger")
        return
    reduced = _reduced(value)
    if isinstance(reduced, str):
        _by_name(hasher, value, reduced)
        return
    before, hasher._reducing = hasher._reducing, True
    _write_reduced(hasher, value, reduced)
    hasher._reducing = before


def _write_reduced(hasher: Any, value: Any, reduced: tuple[Any, ...]) -> None:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.dtype):
        # Equal dtypes, and their parts, may be one object or several.
        found = hasher._apart(reduced, alone=True)
        hasher._out.append(tagged(b"dtype", found.written))
        hasher._references += found.references
        return
    make, args, state, items, pairs, setter = (*reduced, None, None, None, None)[:6]
    items, pairs = list(items or ()), list(pairs or ())
    if not _is_value(value, state, items, pairs):
        if hasher._again(value):
            return
        if not (isinstance(value, _UNCHANGED) or _is_sentinel(hasher, value, reduced)):
            hasher._changes(value)
    hasher._header(b"object")
    hasher.value(make)
    hasher.value(args)
    hasher.value(state_of(value, state))
    hasher._all(b"items", items)
    hasher._all(b"pairs", pairs)
    hasher.value(setter)


def _is_sentinel(hasher: Any, value: Any, reduced: tuple[Any, ...]) -> bool:
    """Return whether *value* is a stateless library object, such as `dataclasses.MISSING`."""
    kind: Any = type(value)
    return (
        kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and not any(reduced[2:])
        and kind not in hasher.scope
    )


def _by_name(hasher: Any, value: Any, name: str) -> None:
    """Write an object that pickle refers to by name."""
    module = getattr(value, "__module__", None) or pickle.whichmodule(value, name)  # type: ignore[attr-defined]
    if hasher.scope.includes(module):  # such as typing.NewType
        if hasher._again(value):
            return
        hasher._text(b"named", name)
        own = getattr(value, "__dict__", {})
        hasher._named(b"of", {k: v for k, v in own.items() if k not in _DERIVED})
    else:
        hasher._text(b"import", f"{module}:{name}")


def _reduced(value: Any) -> Any:
    """Return pickle's reduction of *value*."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        return reduce(value) if reduce is not None else value.__reduce_ex__(4)
    except Exception as exc:
        raise NoContent(
            f"a {type_name(value)} can't be hashed or shipped ({reason_of(exc)})"
        ) from None


def _is_value(value: Any, state: Any, items: list[Any], pairs: list[Any]) -> bool:
    """Return whether the identity of *value* doesn't matter, only its content.

    Libraries may share one such object in one process, and have two in another.
    """
    kind = type(value)
    if isinstance(value, _VALUES):
        return True
    if state is not None or items or pairs or kind.__name__ in ("bytearray", "array"):
        return False
    its: list[Any] = [kind.__reduce_ex__, kind.__reduce__]
    return kind in copyreg.dispatch_table or its != [object.__reduce_ex__, object.__reduce__]
