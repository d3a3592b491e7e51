"""Publish, read, and store from coroutines; documented at the methods of `Offload`.

Celery keeps the current app and the task being executed (the parent of what it publishes) per
thread. So a thread that calls Celery for a coroutine sets both to those of the caller.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import ResultBase, ResultSet, assert_will_not_block

from offload.hooks.aio.results import Watch, share_backend, single_results, wait_for
from offload.hooks.aio.threads import call_in_thread
from offload.hooks.celery_internals import app_itself, executing, worker_task
from offload.hooks.runtime import Runtime
from offload.ref import Ref
from offload.stores.checks import check_timeout
from offload.stores.processes import PerProcess

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
P = ParamSpec("P")

_READ = 60.0  # seconds to read a result that was found: it may have expired since

_eager = PerProcess(threading.RLock)
"""Held during eager calls, because Celery's flag that a task is running is process-wide."""


class Publishable(Protocol[P, T_co]):
    """A task or a signature."""

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...


class Gettable(Protocol[T_co]):
    """A reference or a result."""

    def get(self) -> T_co: ...


async def delay(runtime: Runtime, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if isinstance(task, str):
        return await apply_async(runtime, task, args, kwargs, {})
    task = app_itself(task)  # resolve a proxy here, for the caller's current app
    return await _publish(runtime, task, lambda: task.delay(*args, **kwargs))


async def apply_async(
    runtime: Runtime, task: Any, args: Any, kwargs: Any, options: Mapping[str, Any]
) -> Any:
    if isinstance(task, str):
        send = runtime.app.send_task
        return await _publish(runtime, None, lambda: send(task, args, kwargs, **options))
    task = app_itself(task)
    return await _publish(runtime, task, lambda: task.apply_async(args, kwargs, **options))


async def _publish(runtime: Runtime, task: Any, publish: Callable[[], Any]) -> Any:
    app = app_itself(getattr(task, "app", None) or runtime.app)
    caller = _Caller(app)

    def call() -> Any:
        result = publish()
        _forget_waiting(result)
        return result

    def call_eagerly() -> Any:
        with _eager.get():
            return publish()

    called = call_eagerly if app.conf.task_always_eager else call
    return await call_in_thread(lambda: caller.run(called))


async def get(
    runtime: Runtime,
    source: Any,
    *,
    timeout: float | None,
    propagate: bool,
    disable_sync_subtasks: bool,
) -> Any:
    timeout = check_timeout(timeout)
    if isinstance(source, Ref):
        reading = call_in_thread(lambda: runtime.get(source))
        try:
            return await asyncio.wait_for(reading, timeout)
        except asyncio.TimeoutError as exc:
            if isinstance(exc.__cause__, asyncio.CancelledError):
                raise CeleryTimeoutError("The value wasn't read in time.") from None
            raise
    if not isinstance(source, ResultBase):
        raise TypeError(f"aget: expected a result or a Ref, got a {type(source).__name__}")
    if disable_sync_subtasks and not runtime.app.conf.task_always_eager:
        assert_will_not_block()
    watch = Watch(source, propagate=propagate, timeout=timeout)
    await wait_for(watch)

    def read() -> Any:
        watch.take()
        # Celery's timeout includes the time to download a group's values.
        left = None if watch.is_taken else _READ
        how = {"timeout": left, "propagate": propagate, "disable_sync_subtasks": False}
        if isinstance(source, ResultSet):
            return source.join(**how)
        return source.get(follow_parents=False, **how)

    caller = _Caller(runtime.app)
    return await call_in_thread(lambda: caller.run(read))


async def put(runtime: Runtime, value: T, **options: Any) -> Ref[T]:
    return await call_in_thread(lambda: runtime.put(value, **options))


class _Caller:
    """The app and task on whose behalf Celery is called; create it in the caller's thread."""

    def __init__(self, app: Any) -> None:
        self._app = app
        task = worker_task()
        self._task = task
        self._request = None if task is None else task.request_stack.top

    def run(self, function: Callable[[], T]) -> T:
        """Call *function* in this thread, which must be one of offload's."""
        self._app.set_current()
        share_backend(self._app)
        if self._task is None:
            return function()
        with executing(self._task, self._request):
            return function()


def _forget_waiting(result: Any) -> None:
    """Keep the backend from waiting for results that this thread has published.

    Publishing a group registers its results with the backend. `get` registers them again in the
    thread where it waits.
    """
    while result is not None:
        for node in single_results(result):
            node.backend.remove_pending_result(node)
        result = getattr(result, "parent", None)  # a custom `apply_async` may return anything
