"""User code that runs while a task is published, and so sees, and may change, its arguments."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from typing import Any

from celery import signals
from celery.app.routes import MapRoute
from kombu.utils.functional import maybe_evaluate

__all__ = ("is_user_code", "listeners", "overrides", "publishes", "user_routes")

_LEAVE_ARGUMENTS_ALONE = frozenset(
    {"celery", "kombu", "offload", "sentry_sdk", "opentelemetry", "ddtrace", "newrelic"}
)
"""Packages whose functions do not read arguments: Celery itself, and tracers, which read and
write headers."""


def is_user_code(function: Any) -> bool:
    """Return whether *function* may read the arguments of a published task."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    names = getattr(function, "__globals__", None)
    module = names.get("__name__") if names is not None else type(function).__module__
    return str(module).partition(".")[0] not in _LEAVE_ARGUMENTS_ALONE


def overrides(task: Any) -> bool:
    """Return whether *task* overrides a method that publishes it."""
    return is_user_code(task.apply_async) or is_user_code(task.shadow_name)


def listeners() -> bool:
    """Return whether user code receives Celery's publishing signals."""
    for signal in (signals.before_task_publish, signals.after_task_publish, signals.task_sent):
        for _, receiver in list(signal.receivers or ()):
            if isinstance(receiver, weakref.ReferenceType):
                receiver = receiver()  # noqa: PLW2901
            if receiver is not None and is_user_code(receiver):
                return True
    return False


def user_routes(router: Any) -> Iterator[Any]:
    """Yield the routes of a Celery router that are functions or objects of the user's."""
    for route in router.routes or ():
        if not isinstance(maybe_evaluate(route), MapRoute):
            yield route


def publishes(app: Any) -> bool:
    """Return whether user code sees every task of *app* that is published."""
    return (
        listeners()
        or is_user_code(app.send_task)
        or any(True for _ in user_routes(app.amqp.router))
    )
