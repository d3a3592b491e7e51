"""User code that sees what is published is given values, as plain Celery gives it.

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
from typing import TYPE_CHECKING, Any

from offload.errors import OffloadError
from offload.hooks.delivery import current_delivery
from offload.hooks.known import KnownRefs, knowing
from offload.hooks.outgoing import described
from offload.hooks.usercode import is_user_code, user_routes

if TYPE_CHECKING:
    from offload.hooks.app import Offload

__all__ = ("guard_router", "guard_send_task", "guard_task", "showing")

_GUARDED = "_offload_handover"


def guard_task(hook: Offload, task: Any) -> None:
    """Have an ``apply_async`` or ``shadow_name`` of the task's own called with values."""
    if hook.tasks[task.name].overrides and not hasattr(task.apply_async, _GUARDED):
        task.apply_async = _guarded(hook, functools.partial(task.apply_async), task.name)


def guard_send_task(hook: Offload, app: Any) -> None:
    """Have an app's own ``send_task`` called with values."""
    if not is_user_code(app.send_task):
        return
    send = app.send_task

    @functools.wraps(send)
    def send_task(name: str, *given: Any, **options: Any) -> Any:
        return _guarded(hook, functools.partial(send, name), name)(*given, **options)

    app.send_task = send_task


def _guarded(hook: Offload, publish: Callable[..., Any], task: str) -> Callable[..., Any]:
    def guarded(args: Any = None, kwargs: Any = None, *given: Any, **options: Any) -> Any:
        with knowing() as known:
            with showing(hook, task):
                args, kwargs = known.resolve_call(hook, task, args, kwargs)
                options = known.resolve_options(hook, options)
            return publish(args, kwargs, *given, **options)

    setattr(guarded, _GUARDED, True)
    return guarded


def guard_router(hook: Offload, router: Any) -> None:
    """Have functions in ``task_routes`` called with values, which then are dropped again."""
    lookup = router.lookup_route

    def lookup_route(name: str, args: Any = None, kwargs: Any = None, *more: Any) -> Any:
        if any(True for _ in user_routes(router)):
            with showing(hook, name) as known:
                args, kwargs = known.resolve_call(hook, name, args, kwargs, remember=False)
        return lookup(name, args, kwargs, *more)

    router.lookup_route = lookup_route


@contextmanager
def showing(hook: Offload, task: str) -> Iterator[KnownRefs]:
    """Within this, references are resolved for user code; errors name *task*."""
    delivery = current_delivery()
    if delivery is not None:
        delivery.show_result()
    try:
        with knowing() as known:
            yield known
    except OffloadError as exc:
        hook.counters.failed(exc)
        raise described(exc, task, None) from exc
