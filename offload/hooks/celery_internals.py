"""Celery and kombu: the private attributes that the hooks use, and how they replace others.

`tests/hooks/test_celery_internals.py` checks them, and everything else that the hooks replace,
against the installed versions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from celery import _state
from celery.backends.base import KeyValueStoreBackend

GET_BACKEND = "_get_backend"
"""Of an app: creates its result backend, once per thread."""
RAISE_PARENT_ERROR = "_maybe_reraise_parent_error"
"""Of a result: raises the error of a failed result before it in a chain."""
TAKE_META = "_maybe_set_cache"
"""Of a result: takes metadata that has arrived, and calls the callbacks given to `then`."""
RESULT_META = "_get_result_meta"
"""Of a backend that stores metadata as one value: builds it from a result and a state."""
READ_META = "_get_task_meta_for"
"""Of a backend with keys: reads a state by ``get``, once, and decodes it."""
STORE_STATE = "_store_result"
"""Of a backend with keys: reads the stored state by `READ_META`, and replaces all but a success."""
CALL_ERRBACKS = "_call_task_errbacks"
"""Of a backend: takes a request, an exception, and a traceback."""
UNPACK_PART = "_unpack_chord_result"
"""Of the Redis backend: decodes a chord's part, without `meta_from_decoded`."""
UNPICKLE_BACKEND = "unpickle_backend"
"""Of `celery.backends.base`: creates the backend of a result that was pickled."""
LIMIT_DELAYED = "_limit_post_eta"
"""Method of a worker's consumer: apply the rate limit to a request whose countdown has ended."""
CONTEXT = "_context"
"""Of a request in the worker's main process: a cached property, the request as tasks see it."""

_PATCH = "_offload_original"


def patch(owner: Any, name: str, make: Callable[[Callable[..., Any]], Any]) -> None:
    """Replace the function *name* of a class or module by ``make(original)``, once per process."""
    original = getattr(owner, name)
    if not hasattr(original, _PATCH):
        replaced = functools.wraps(original)(make(original))
        setattr(replaced, _PATCH, original)
        setattr(owner, name, replaced)


def unpatched(owner: Any, name: str) -> Callable[..., Any]:
    """Return the function that `patch` has replaced, or would replace."""
    function: Callable[..., Any] = getattr(owner, name)
    return getattr(function, _PATCH, function)


def app_itself(app: Any) -> Any:
    """Return the app behind a proxy such as `celery.current_app`."""
    return app._get_current_object() if hasattr(app, "_get_current_object") else app


def config_source(app: Any) -> Any:
    """Return what the app is configured from: a module's name, ``module:name``, or an object."""
    return app._config_source


def opened_backend(app: Any) -> Any:
    """Return the backend that was created already for all threads; None if there is none."""
    return getattr(app, "_backend", None)


def parents_of(result: Any) -> list[Any]:
    """Return the results before *result* in its chain, the nearest first."""
    return list(result._parents())


def known_meta(result: Any) -> Any:
    """Return the metadata that a result object has fetched already; None if it has none."""
    return getattr(result, "_cache", None)


def take_meta(result: Any, meta: Any) -> None:
    """Give a result object the metadata of a result that is ready."""
    getattr(result, TAKE_META)(meta)


def app_of_thread() -> Any:
    """Return the app that is current in this thread."""
    return _state.get_current_app()


def worker_task() -> Any:
    """Return the task that a worker executes in this thread; None if there is none."""
    return _state.get_current_worker_task()


@contextmanager
def executing(task: Any, request: Any) -> Iterator[None]:
    """Let this thread execute *request* of *task*, so that what it publishes has this parent."""
    _state.push_current_task(task)
    task.request_stack.push(request)
    try:
        yield
    finally:
        task.request_stack.pop()
        _state.pop_current_task()


def use_backend(app: Any, backend: Any, queue: str) -> None:
    """Let this thread use *backend* as the app's, and *queue* for replies.

    If the app has one backend for all threads, it stays.
    """
    app._local.backend = backend
    app._local.oid = queue


def registered_tasks(app: Any) -> dict[str, Any]:
    """Return the app's tasks by name, without finalizing the app as ``app.tasks`` would."""
    tasks: dict[str, Any] = app._tasks
    return tasks


def body_of_request(request: Any) -> tuple[Any, Any, Any]:
    """Return the decoded message of a request: args, kwargs, embed."""
    body: tuple[Any, Any, Any] = request._payload
    return body


def set_arguments(request: Any, args: Any, kwargs: Any, embed: Any) -> None:
    """Replace the decoded message of a request; the body it was decoded from stays as it is."""
    vars(request)["_payload"] = args, kwargs, embed  # of a cached property
    request._args = request._request_dict["args"] = args
    request._kwargs = request._request_dict["kwargs"] = kwargs


def arguments(request: Any) -> tuple[Any, Any]:
    """Return a request's own ``args`` and ``kwargs``, whose properties are replaced."""
    return request._args, request._kwargs


def is_revoked(request: Any) -> bool:
    """Return whether a worker has revoked a request itself."""
    return bool(request._already_revoked)


def context_maker(kind: Any) -> Callable[[Any], Any]:
    """Return the function of a request class whose result `CONTEXT` caches."""
    make: Callable[[Any], Any] = vars(kind)[CONTEXT].func
    return make


def keeps_metadata_whole(backend: Any) -> bool:
    """Return whether *backend* stores all of `RESULT_META`. Tables and documents have only
    the columns that Celery knows.
    """
    return isinstance(backend, KeyValueStoreBackend) or hasattr(backend, "result_consumer")


def collects_parts(backend: Any) -> bool:
    """Return whether *backend* collects the results of a chord's parts itself, as Redis does."""
    return hasattr(backend, UNPACK_PART)


def counts_parts(backend: Any) -> bool:
    """Return whether *backend* keeps each part of a chord as a result, until the chord expires.

    Memcached, DynamoDB, and GCS do. Redis collects them in a list; others keep them as any other
    result.
    """
    return bool(getattr(backend, "implements_incr", False))


def collected_parts(backend: Any, group_id: str) -> list[Any]:
    """Return the results that the Redis backend has collected of a chord's parts, as stored."""
    key = backend.get_key_for_group(group_id, ".j")
    client = backend.client
    parts = client.zrange(key, 0, -1) if backend._chord_zset else client.lrange(key, 0, -1)
    return [backend.decode(part)[3] for part in parts]


def uses_sentinel(channel: Any) -> bool:
    """Return whether a channel class of kombu's Redis transport finds its server by Sentinel."""
    return hasattr(channel, "_sentinel_managed_pool")


def channel_params(connection: Any, transport: Any) -> dict[str, Any]:
    """Return the parameters that kombu's Redis channel would connect with.

    A channel connects when it is initialized, so this one is not.
    """
    channel = transport.Channel.__new__(transport.Channel)
    channel.connection = SimpleNamespace(client=connection, default_port=transport.default_port)
    for name in transport.Channel.from_transport_options:
        if name in connection.transport_options:
            setattr(channel, name, connection.transport_options[name])
    params: dict[str, Any] = channel._connparams()
    return params
