"""Advice on values that no serializer can carry, without showing their content."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from offload.ref import Ref

__all__ = ("IN_THE_TASK", "advise")

IN_THE_TASK = "create it in the task, or send what it is created from"
_OF_A_PROCESS = frozenset(
    {"_thread", "threading", "_io", "io", "socket", "_socket", "ssl", "_ssl", "select", "sqlite3"}
)


def advise(value: Any) -> str:
    """Return what to do about *value*, which isn't data; "" if its type says nothing."""
    kind = type(value)
    if isinstance(value, type):
        return ""
    if issubclass(kind, Ref):
        return "pass a Ref as an argument, or inside of lists, tuples, and dicts"
    if callable(getattr(kind, "model_dump", None)):
        return "send its .model_dump()"
    if hasattr(kind, "__attrs_attrs__"):
        return "send attrs.asdict() of it"
    if dataclasses.is_dataclass(kind):
        return "send dataclasses.asdict() of it"
    if kind.__module__.partition(".")[0] in _OF_A_PROCESS:
        return IN_THE_TASK
    if isinstance(value, Iterator):
        return "send a list of its items"
    return ""
