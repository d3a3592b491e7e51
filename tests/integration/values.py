"""Values that tests send, and their comparison."""

from __future__ import annotations

from typing import Any

CANARY = "canary-9c5e1d"
"""Part of every large value: wherever it appears, a value was sent in full."""


def big(label: str = "", rows: int = 40) -> dict[str, Any]:
    """Return a value that every serializer can write unchanged."""
    return {
        "canary": f"{CANARY} {label} " * 20,
        "rows": [[i, i / 4, f"row {i}", None, i % 2 == 0] for i in range(rows)],
        "é": {"b": 1, "a": [], "c": {}},
    }


def big_list(label: str = "", rows: int = 40) -> list[Any]:
    return [f"{CANARY} {label}", *range(rows)]


def typed(value: Any) -> Any:
    """Return *value* in a form whose equality means equal in value, type, and order."""
    if isinstance(value, dict):
        items = [(typed(key), typed(item)) for key, item in value.items()]
        return (type(value).__name__, items)
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, [typed(item) for item in value])
    if isinstance(value, (set, frozenset)):
        return (type(value).__name__, sorted(repr(typed(item)) for item in value))
    if isinstance(value, BaseException):
        return ("raised", type(value).__name__, [typed(arg) for arg in value.args])
    return (type(value).__name__, repr(value))
