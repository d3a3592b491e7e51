"""Give values to user code that sees published tasks, as plain Celery does.

A worker that publishes the next step of a chain, a callback, or a chord's body has its
arguments as references, and passes them on as that. An ``apply_async`` of the task's own,
a function in ``task_routes``, and receivers of Celery's publishing signals read arguments:
where there are any, references are resolved for them. What they leave as it is goes on by
its reference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import Celery, Task

from offload.errors import OffloadError
from offload.hooks.delivery import current_delivery
from offload.hooks.known import KnownRefs, knowing
from offload.hooks.message import described
from offload.hooks.runtime import Runtime
from offload.hooks.usercode import is_user_code, user_routes

__all__ = ("guard_router", "guard_send_task", "guard_task", "showing")

_GUARDED = "_offload_handover"

resending: ContextVar[int] = ContextVar("offload_resending", default=0)
"""How many times the message being published was sent again for a store outage. User code saw it
when it was published first, and now has no values to see.
"""


def guard_task(runtime: Runtime, task: Any) -> None:
    """Call a task's own ``apply_async`` or ``shadow_name`` with values."""
    if runtime.tasks[task.name].overrides and not hasattr(task.apply_async, _GUARDED):
        again = functools.partial(Task.apply_async, task)
        task.apply_async = _guarded(runtime, task.apply_async, again, task.name)


def guard_send_task(runtime: Runtime, app: Any) -> None:
    """Call an app's own ``send_task`` with values."""
    if not is_user_code(app.send_task):
        return
    send = app.send_task

    @functools.wraps(send)
    def send_task(name: str, *given: Any, **options: Any) -> Any:
        again = functools.partial(Celery.send_task, app, name)
        return _guarded(runtime, functools.partial(send, name), again, name)(*given, **options)

    app.send_task = send_task


def _guarded(
    runtime: Runtime, publish: Callable[..., Any], again: Callable[..., Any], task: str
) -> Callable[..., Any]:
    """Return *publish* with values in place of references; *again* is Celery's own."""

    def guarded(args: Any = None, kwargs: Any = None, *given: Any, **options: Any) -> Any:
        if resending.get():
            return again(args, kwargs, *given, **options)
        with knowing() as known:
            with showing(task):
                args, kwargs = known.resolve_call(runtime, task, args, kwargs)
                options = known.resolve_options(runtime, options)
            return publish(args, kwargs, *given, **options)

    setattr(guarded, _GUARDED, True)
    return guarded


def guard_router(runtime: Runtime, router: Any) -> None:
    """Call functions in ``task_routes`` with values, which are dropped afterwards."""
    lookup = router.lookup_route

    def lookup_route(name: str, args: Any = None, kwargs: Any = None, *more: Any) -> Any:
        if resending.get():
            return None  # it goes to the queue it came from
        if any(True for _ in user_routes(router)):
            with showing(name) as known:
                args, kwargs = known.resolve_call(runtime, name, args, kwargs, remember=False)
        return lookup(name, args, kwargs, *more)

    router.lookup_route = lookup_route


@contextmanager
def showing(task: str) -> Iterator[KnownRefs]:
    """Within this, references are resolved for user code; errors name *task*."""
    delivery = current_delivery()
    if delivery is not None:
        delivery.show_result()
    try:
        with knowing() as known:
            yield known
    except OffloadError as exc:
        raise described(exc, task, None) from exc
