"""List the types that this process carries besides Python's own, and how."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from offload.serializers.library_internals import json_types
from offload.serializers.types.registry import BUILT_IN, full_name, registered_types

__all__ = ("CarriedType", "carried_types")


@dataclass(frozen=True)
class CarriedType:
    """A type and what carries it.

    Attributes:
        name: on the wire; of kombu's own registrations, their marker.
        type: module and qualified name; "" if its package isn't imported.
        version: of its data; None where there is none.
        how: ``encode and decode``, ``dataclass``, ``pydantic model``, ``enum``, an extra of
            offload, Celery's JSON, or ``pickle``.
        active: whether this process carries it now.
        advice: what makes it active; "" if it is.
    """

    name: str
    type: str
    version: int | None
    how: str
    active: bool = True
    advice: str = ""


def carried_types(accepted: Collection[str]) -> list[CarriedType]:
    """Return the registered types, those that need an import, and what other types travel by.

    Args:
        accepted: Celery's names of the serializers that the app accepts.

    Raises ConfigurationError for a type of ``offload_types`` that can't be loaded.
    """
    own = registered_types()
    found = [CarriedType(each.name, full_name(each.type), each.version, each.how) for each in own]
    names = {each.name for each in own}
    for built_in in BUILT_IN.values():
        found += [
            CarriedType(
                name, "", None, f"offload[{built_in.extra}]", False, f"import {built_in.imported}"
            )
            for name in built_in.types
            if name not in names and not any(each.type == name for each in found)
        ]
    found += [CarriedType(name, "", None, "kombu's register_type") for name in json_types()]
    if "pickle" in accepted:
        found.append(CarriedType("any other", "", None, "pickle"))
    return found
