"""CPython and its standard library: everything the class registry uses that they don't document.

`tests/registry/test_cpython_internals.py` checks each of them against the running Python.
"""

from __future__ import annotations

import dataclasses
from types import CodeType
from typing import Any

__all__ = ("dataclass_constant", "is_repr_guard")

_GUARD_LOCALS = ("self", "key", "result")
_GUARD_CALLS = frozenset({"id", "get_ident", "add", "discard"})


def is_repr_guard(code: CodeType, name: str) -> bool:
    """Return whether the closure variable *name* of *code* only lists the reprs in progress.

    `dataclasses` and `reprlib.recursive_repr` wrap ``__repr__`` that way. Their wrapper is
    recognized by its shape: whoever copies a function may give it any file name.
    """
    return (
        name == "repr_running"
        and "user_function" in code.co_freevars
        and code.co_varnames == _GUARD_LOCALS
        and _GUARD_CALLS.issubset(code.co_names)
    )


_DATACLASS_CONSTANTS = {
    id(getattr(dataclasses, name)): name
    for name in (
        "KW_ONLY",
        "MISSING",
        "_FIELD",
        "_FIELD_CLASSVAR",
        "_FIELD_INITVAR",
        "_HAS_DEFAULT_FACTORY",
    )
    if hasattr(dataclasses, name)
}


def dataclass_constant(obj: Any) -> str | None:
    """Return the name of a constant that `dataclasses` compares by identity; None for others."""
    return _DATACLASS_CONSTANTS.get(id(obj))
