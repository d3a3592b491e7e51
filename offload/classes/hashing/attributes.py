"""Select the attributes of a class that count for its hash, not those that Python derives."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from offload.classes.cpython_internals import abc_registry, protocol_init
from offload.classes.pydantic_internals import model_attributes

__all__ = ("DERIVED", "annotations_of", "attributes_of", "members_of", "subclasses_of")


def annotations_of(obj: Any) -> dict[str, Any]:
    """Return the annotations of *obj* itself.

    From Python 3.14 on, annotations are code that runs on access; undefined names stay text.
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


DERIVED = frozenset(
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
    """Return the attributes of *cls* itself that decide its behavior."""
    own = vars(cls)
    skipped = DERIVED
    if "_member_map_" in own:
        skipped = skipped | _ENUM | own["_member_map_"].keys()
    if typing.Protocol in cls.__mro__:
        skipped |= _PROTOCOL
        if own.get("__init__") is _inherited(cls):
            skipped |= {"__init__"}  # set when it is first instantiated
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
    """Return the name, value, and attributes of each member of an enum, including aliases."""
    members: Mapping[str, Any] = vars(cls).get("_member_map_", {})
    return [
        (name, member._value_, {k: v for k, v in vars(member).items() if not _is_own(k)})
        for name, member in members.items()
    ]


def _is_own(name: str) -> bool:
    """Return whether a member's attribute belongs to the enum: ``_value_``, ``__objclass__``."""
    return name.startswith("_") and name.endswith("_")


def subclasses_of(cls: type) -> list[type]:
    """Return the classes registered as subclasses of an abstract class."""
    if "_abc_impl" not in vars(cls):
        return []
    return [found for reference in abc_registry(cls) if (found := reference()) is not None]
