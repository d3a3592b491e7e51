"""pydantic: everything the class registry knows of its models that it doesn't document.

`tests/registry/test_pydantic_internals.py` checks it against the installed pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

__all__ = ("is_incomplete", "model_attributes", "state_of")

_MADE_BY_PYDANTIC = frozenset(
    {
        "__pydantic_complete__",
        "__pydantic_core_schema__",
        "__pydantic_fields_complete__",
        "__pydantic_parent_namespace__",
        "__pydantic_serializer__",
        "__pydantic_setattr_handlers__",
        "__pydantic_validator__",
        "__signature__",
    }
)
_STATES: dict[tuple[str, str], frozenset[str]] = {
    ("pydantic._internal._decorators", "Decorator"): frozenset({"cls_ref"}),
    ("pydantic.fields", "ComputedFieldInfo"): frozenset(),
    ("pydantic.fields", "ModelPrivateAttr"): frozenset({"_default_factory_takes_validated_data"}),
    ("pydantic.fields", "FieldInfo"): frozenset(
        {
            "annotation",
            "evaluated",
            "_attributes_set",
            "_complete",
            "_default_factory_takes_validated_data",
            "_original_annotation",
            "_original_assignment",
        }
    ),
}
"""Of what is found in attributes, by module and class: what holds an address, or is known from
annotations."""


def model_attributes(own: Mapping[str, Any]) -> AbstractSet[str]:
    """Return which attributes pydantic made from the others, if *own* are those of a model."""
    is_model = "__pydantic_decorators__" in own or "__pydantic_validator__" in own
    return _MADE_BY_PYDANTIC if is_model else frozenset()


def is_incomplete(cls: Any) -> bool:
    """Return whether a class is a model some of whose annotations named nothing yet."""
    return getattr(cls, "__pydantic_complete__", True) is False


def state_of(value: Any, state: Any) -> Any:
    """Return of the state that pickle takes of *value* what decides what it does."""
    kind = type(value)
    without = _STATES.get((kind.__module__, kind.__qualname__))
    if without is None:
        return state
    found = {
        name: getattr(value, name)
        for name in getattr(kind, "__slots__", None) or vars(value)
        if name not in without and hasattr(value, name)
    }
    if kind.__name__ == "ComputedFieldInfo":
        wrapped = value.wrapped_property
        function = getattr(wrapped, "fget", None) or getattr(wrapped, "func", None)
        annotation = getattr(function, "__annotations__", {}).get("return")
        if (
            isinstance(annotation, str)
            or type(value.return_type).__name__ == "PydanticUndefinedType"
        ):
            found["return_type"] = annotation  # which it is set to later
    return found
