"""The Celery app and task that shipped code is loaded for.

Celery objects in shipped code become those of the process that loads the code. So the settings of
an app, which hold passwords, are never stored.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from celery import Celery, Task, current_task
from celery.app import app_or_default
from celery.app.utils import Settings
from celery.backends.base import Backend

__all__ = (
    "describe_app_part",
    "describe_task",
    "for_task",
    "loading_for",
    "own",
    "own_app",
)

_KINDS = (Celery, Task, Settings, Backend)

loading_for: ContextVar[Any] = ContextVar("offload_loading_for", default=None)
"""The app that code is loaded for; None: the current one."""

for_task: ContextVar[str] = ContextVar("offload_code_for_task", default="")
"""The task, as ``name[id]``, whose arguments need code before it is Celery's current one."""


def describe_app_part(obj: Any) -> tuple[str, str] | None:
    """Return the kind and name of a Celery app, task, configuration, or backend; None for
    others.
    """
    if isinstance(obj, type) or not isinstance(obj, _KINDS):
        return None
    if isinstance(obj, Task):
        return "task", obj.name
    if isinstance(obj, Celery):
        return "app", ""
    return ("conf", "") if isinstance(obj, Settings) else ("backend", "")


def own_app() -> Any:
    """Return the app that code is being loaded for."""
    app = loading_for.get()
    return app_or_default() if app is None else app


def own(what: str, name: str) -> Any:
    """Return this process's counterpart of an object that `describe_app_part` described."""
    app = own_app()
    if what == "app":
        return app
    return app.tasks[name] if what == "task" else getattr(app, what)


def describe_task() -> str:
    """Return which task code is loaded for, as part of a log line; "" if for none."""
    if for_task.get():
        return f" for task {for_task.get()}"
    return f" for task {current_task.name}[{current_task.request.id}]" if current_task else ""
