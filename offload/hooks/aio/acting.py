"""Call Celery in a thread as if the caller had called it.

For each thread, Celery keeps the current app, the task being executed (the parent of what it
publishes), the result backend, and the queue of replies. The first two are the caller's. The last
two are shared by all threads of offload, so that a result that one of them published can be read by
others, and one request asks about all results.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from celery.backends.base import BaseKeyValueStoreBackend
from celery.result import AsyncResult, EagerResult, ResultSet

from offload.hooks.aio.threads import is_calling_thread
from offload.hooks.celery_internals import executing, use_backend, worker_task

T = TypeVar("T")

_SHARED = "_offload_shared"
"""Attribute of an app: a process id, and the backend and the reply queue of its threads."""


class Caller:
    """The app and the task for which a coroutine calls Celery; created in the caller's thread."""

    def __init__(self, app: Any) -> None:
        self._app = app
        task = worker_task()
        self._task = task
        self._request = None if task is None else task.request_stack.top

    def run(self, function: Callable[[], T]) -> T:
        """Call *function* in this thread, which must be offload's own."""
        self._app.set_current()
        share_backend(self._app)
        if self._task is None:
            return function()
        with executing(self._task, self._request):
            return function()


def share_backend(app: Any) -> None:
    """Let this thread, which must be offload's own, use the backend that its threads share.

    Backends that may be unsafe to share, those without a consumer of results, stay one per thread.
    """
    pid, backend, queue = vars(app).get(_SHARED) or (None, None, "")
    if pid != os.getpid():
        backend, queue = app.backend, app.thread_oid
        if not hasattr(backend, "result_consumer"):
            return
        _skip_subscribing(backend.result_consumer)
        vars(app)[_SHARED] = os.getpid(), backend, queue
    use_backend(app, backend, queue)


def is_polled(backend: Any) -> bool:
    """Return whether *backend* tells the states of many results in one request."""
    return isinstance(backend, BaseKeyValueStoreBackend)


def forget_waiting(result: Any) -> None:
    """Keep the backend from waiting for results that this thread has published.

    Publishing a group registers them. `get` registers them again, in its own thread.
    """
    while result is not None:
        for node in single_results(result):
            node.backend.remove_pending_result(node)
        result = getattr(result, "parent", None)  # a task's own `apply_async` may return anything


def single_results(result: Any) -> Iterator[Any]:
    """Yield the results in *result* that must be waited for: not of eager or ignored tasks."""
    if isinstance(result, ResultSet):
        for each in result.results:
            yield from single_results(each)
    elif not isinstance(result, EagerResult) and isinstance(result, AsyncResult):
        yield from () if result.ignored else (result,)


def _skip_subscribing(consumer: Any) -> None:
    """Keep threads that publish from subscribing to results, which are polled.

    Unread messages about them would pile up.
    """
    subscribe: Callable[..., Any] = consumer.consume_from

    def consume_from(task_id: str) -> Any:
        return None if is_calling_thread() else subscribe(task_id)

    consumer.consume_from = consume_from
