"""pydantic: which attributes and fields of its models the class registry leaves out of hashes.

`tests/classes/test_pydantic_internals.py` checks it against the installed pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

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
_DERIVED = frozenset(
    {
        "annotation",
        "cls_ref",  # holds an address
        "evaluated",
        "return_type",
        "_attributes_set",
        "_complete",
        "_default_factory_takes_validated_data",
        "_original_annotation",
        "_original_assignment",
    }
)
"""Of descriptions of fields and decorators: known from annotations, which are hashed."""


def model_attributes(own: Mapping[str, Any]) -> AbstractSet[str]:
    """Return which attributes pydantic made from the others, if *own* are those of a model."""
    is_model = "__pydantic_decorators__" in own or "__pydantic_validator__" in own
    return _MADE_BY_PYDANTIC if is_model else frozenset()


def state_of(value: Any, state: Any) -> Any:
    """Return the part of *value*'s pickled *state* that decides its behavior."""
    kind = type(value)
    if not kind.__module__.startswith("pydantic.") or not isinstance(state, (dict, tuple)):
        return state
    slots: dict[str, Any] = {}
    for each in state if isinstance(state, tuple) else (state,):
        slots |= each or {}
    return {name: part for name, part in slots.items() if name not in _DERIVED}
