"""Names under which results of tasks are saved in the catalog: the option ``save_as``.

It is a name with fields in braces. They are replaced by nothing but text of a few harmless
characters: task ids come from whoever sends a message, and must not choose another object.
"""

from __future__ import annotations

import inspect
import re
import time
from typing import Any

from offload.catalog.names import check_name
from offload.errors import ConfigurationError

__all__ = ("FIELDS", "check_template", "name_of")

FIELDS = ("task", "task_id", "root_id", "date")
"""Fields of a template: the task's name, its id, the id of the first task of its workflow, and the
day it runs on, in UTC (``2026-01-31``)."""

_FIELD = re.compile(r"\{([^{}]*)\}")
_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)
_EXAMPLE = "x"


def check_template(template: str, task: Any) -> None:
    """Raise ConfigurationError for a *template* that can't become a name, or an unfit *task*."""
    where = f"task {task.name!r}: save_as={template[:150]!r}"
    unknown = [field for field in _FIELD.findall(template) if field not in FIELDS]
    if unknown or not _FIELD.sub(_EXAMPLE, template).isascii() or _has_braces(template):
        raise ConfigurationError(
            f"{where}: write a name in ASCII with any of these fields: "
            + ", ".join(f"{{{field}}}" for field in FIELDS),
            task=task.name,
        )
    try:
        check_name(_FIELD.sub(_EXAMPLE, template))
    except ValueError as exc:
        raise ConfigurationError(f"{where}: {exc}", task=task.name) from None
    if inspect.iscoroutinefunction(task.run):
        raise ConfigurationError(
            f"{where}: the results of coroutine functions aren't saved: save the object in the "
            "task, by offload.catalog.save",
            task=task.name,
        )


def _has_braces(template: str) -> bool:
    return not {"{", "}"}.isdisjoint(_FIELD.sub(_EXAMPLE, template))


def name_of(template: str, task: Any, now: float) -> str:
    """Return the name for the result of the call of *task* that runs.

    Raises ConfigurationError if the name would be invalid.
    """
    request = task.request
    known = {
        "task": task.name,
        "task_id": request.id,
        "root_id": request.root_id or request.id,
        "date": time.strftime("%Y-%m-%d", time.gmtime(now)),
    }

    def text(found: re.Match[str]) -> str:
        field = found[1]
        value = str(known[field])
        if not _HARMLESS.fullmatch(value):
            raise ConfigurationError(
                f"task {task.name!r}: its {field} can't be part of the name {template!r} "
                "(save_as): only A-Z a-z 0-9 . _ - can, up to 100 characters",
                task=task.name,
            )
        return value

    name = _FIELD.sub(text, template)
    try:
        return check_name(name)
    except ValueError as exc:
        raise ConfigurationError(f"task {task.name!r}, save_as: {exc}", task=task.name) from None
