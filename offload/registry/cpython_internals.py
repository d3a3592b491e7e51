"""CPython and its standard library: everything the class registry uses that they don't document.

`tests/registry/test_cpython_internals.py` checks each of them against the running Python.
"""

from __future__ import annotations

from types import CodeType

__all__ = ("is_repr_guard",)

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
