"""User code that sees published tasks: detect it, and give it values.

A worker that publishes the next step of a chain, a callback, or a chord's body has its arguments as
references, and passes them on as references. A task's own ``apply_async``, functions in
``task_routes``, and receivers of Celery's publishing signals read arguments: where there are any,
references are resolved for them. Values that they leave unchanged are sent by their references.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import Celery, Task, signals
from celery.app.routes import MapRoute
from celery.canvas import group
from kombu.utils.functional import maybe_evaluate

from offload.errors import OffloadError
from offload.hooks.celery_internals import patch, registered_tasks
from offload.hooks.delivery import current_delivery
from offload.hooks.known import GroupDedup, KnownRefs, group_dedup, using
from offload.hooks.message import described
from offload.hooks.runtime import Runtime

__all__ = (
    "guard_router",
    "guard_send_task",
    "guard_task",
    "has_listeners",
    "install",
    "is_user_code",
    "resending",
    "showing",
)

_GUARDED = "_offload_handover"
_IGNORE_ARGUMENTS = frozenset(
    {"celery", "kombu", "offload", "sentry_sdk", "opentelemetry", "ddtrace", "newrelic"}
)
"""Packages whose functions don't read arguments: Celery itself, and tracers, which read and write
headers."""

resending: ContextVar[int] = ContextVar("offload_resending", default=0)
"""How many times the message being published was sent again because of a store outage. User code
saw it when it was published first; now there are no values to show.
"""


# -- detect


def is_user_code(function: Any) -> bool:
    """Return whether *function* may read the arguments of a published task."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    names = getattr(function, "__globals__", None)
    module = names.get("__name__") if names is not None else type(function).__module__
    return str(module).partition(".")[0] not in _IGNORE_ARGUMENTS


def has_listeners() -> bool:
    """Return whether user code receives Celery's publishing signals."""
    for signal in (signals.before_task_publish, signals.after_task_publish, signals.task_sent):
        for _, receiver in list(signal.receivers or ()):
            if isinstance(receiver, weakref.ReferenceType):
                receiver = receiver()  # noqa: PLW2901
            if receiver is not None and is_user_code(receiver):
                return True
    return False


def _overrides(task: Any) -> bool:
    """Return whether *task* overrides a method that publishes it."""
    publish = task.apply_async
    return hasattr(publish, _GUARDED) or is_user_code(publish) or is_user_code(task.shadow_name)


def _has_user_routes(router: Any) -> bool:
    """Return whether a Celery router has routes that are functions or objects of the user's."""
    return any(not isinstance(maybe_evaluate(route), MapRoute) for route in router.routes or ())


# -- give values


def guard_task(runtime: Runtime, task: Any) -> None:
    """Call a task's own ``apply_async`` or ``shadow_name`` with values."""
    if _overrides(task) and not hasattr(task.apply_async, _GUARDED):
        celerys = functools.partial(Task.apply_async, task)
        task.apply_async = _guarded(runtime, task.apply_async, celerys, task.name)


def guard_send_task(runtime: Runtime, app: Any) -> None:
    """Call an app's own ``send_task`` with values."""
    if not is_user_code(app.send_task):
        return
    send = app.send_task

    @functools.wraps(send)
    def send_task(name: str, *given: Any, **options: Any) -> Any:
        celerys = functools.partial(Celery.send_task, app, name)
        return _guarded(runtime, functools.partial(send, name), celerys, name)(*given, **options)

    app.send_task = send_task


def _guarded(
    runtime: Runtime, publish: Callable[..., Any], celerys: Callable[..., Any], task: str
) -> Callable[..., Any]:
    """Return *publish* with values in place of references; *celerys* is Celery's own function."""

    def guarded(args: Any = None, kwargs: Any = None, *given: Any, **options: Any) -> Any:
        if resending.get():
            return celerys(args, kwargs, *given, **options)
        with using() as known:
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
        if _has_user_routes(router):
            with showing(name) as known:
                args, kwargs = known.resolve_call(runtime, name, args, kwargs, remember=False)
        return lookup(name, args, kwargs, *more)

    router.lookup_route = lookup_route


@contextmanager
def showing(task: str) -> Iterator[KnownRefs]:
    """Resolve references for user code in this block; errors name *task*."""
    delivery = current_delivery()
    if delivery is not None:
        delivery.show_result()
    try:
        with using() as known:
            yield known
    except OffloadError as exc:
        raise described(exc, task, None) from exc


# -- groups


def install() -> None:
    """Deduplicate the values of each group's messages; once per process.

    A group made from a generator runs user code between messages, so its objects are serialized
    each time.
    """
    patch(group, "apply_async", _deduplicating)


def _deduplicating(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = getattr(self.app, "_offload", None)
        dedup = None
        if runtime is not None and type(self.tasks) is list:
            dedup = GroupDedup(undisturbed=_is_undisturbed(runtime, self.tasks))
        token = group_dedup.set(dedup)
        try:
            return original(self, *args, **kwargs)
        finally:
            group_dedup.reset(token)

    return apply_async


def _is_undisturbed(runtime: Runtime, signatures: Iterable[Any]) -> bool:
    """Return whether no user code runs while *signatures* are published one after another."""
    app = runtime.app
    if (
        has_listeners()
        or is_user_code(app.send_task)
        or _has_user_routes(app.amqp.router)
        or is_user_code(app.backend.on_task_call)
    ):
        return False
    tasks = registered_tasks(app)
    for name in _names(signatures):
        task = None if name is None else tasks.get(name)
        if name is None or (task is not None and _overrides(task)):
            return False
    return True


def _names(signatures: Any) -> Iterator[str | None]:
    """Yield the names of all tasks in *signatures*, including those in groups, chains, and chords;
    None for signatures that a generator is still to make, or of a user's own class.
    """
    if isinstance(signatures, dict):
        if type(signatures).__module__.partition(".")[0] not in ("builtins", "celery"):
            yield None
        yield str(signatures["task"])
        kwargs = signatures["kwargs"] or {}
        if str(signatures["task"]).startswith("celery."):
            for part in ("tasks", "header", "body"):
                yield from _names(kwargs.get(part))
    elif type(signatures) in (list, tuple):
        for each in signatures:
            yield from _names(each)
    elif signatures is not None:
        yield None
