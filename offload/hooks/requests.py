"""Task requests in a worker's main process: restore their references, and fetch no values.

The main process decodes each message to answer ``inspect``, to start the task on time, and to end
it if it is revoked, expired, or killed. References in it become unverified Refs, so they can't be
mistaken for data, and nothing is fetched. Values are read only for failure hooks of tasks that the
main process ends, and only up to a limit.

Whatever a message contains, nothing here raises: an error in the main process ends the worker, and
the broker gives the message to the next one.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.app.task import Context
from celery.app.trace import task_has_custom
from celery.exceptions import InvalidTaskError
from kombu.utils.objects import cached_property

from offload.errors import StoreUnavailable, ValueTooLarge
from offload.hooks.celery_internals import (
    CONTEXT,
    LIMIT_DELAYED,
    arguments,
    body_of_request,
    context_maker,
    set_arguments,
)
from offload.hooks.events import shorten_fields
from offload.hooks.message import EMBED, HELD, STAND_IN, own_name, restore_refs
from offload.hooks.paths import contains, replace_refs
from offload.hooks.runtime import Runtime
from offload.ref import LostValue, Ref

READABLE_LIMIT = 64 * 1024 * 1024
"""Bytes of one task's arguments that a worker's main process reads for failure hooks."""

_HOOKED = "_offload_hooked"
_HOOKS = ("on_failure", "after_return", "on_retry")
_EMBEDDED = {"callbacks": list, "errbacks": list, "chain": list, "chord": dict}


def install() -> None:
    """Hook the requests of apps with offload; once per process that runs a worker."""
    _spare_rate_limits()
    module = sys.modules.get("celery.worker.request")
    if module is None:
        return
    request: Any = module.Request
    if hasattr(request, _HOOKED):
        return
    init: Callable[..., None] = request.__init__
    info: Callable[..., dict[str, Any]] = request.info
    send_event: Callable[..., Any] = request.send_event
    make_context = context_maker(request)

    @functools.wraps(init)
    def offload_init(self: Any, message: Any, *args: Any, **options: Any) -> None:
        init(self, message, *args, **options)
        if getattr(self.app, "_offload", None) is not None:
            _receive(self)

    @functools.wraps(info)
    def offload_info(self: Any, safe: bool = False) -> dict[str, Any]:
        found = info(self, safe)
        if HELD in vars(self):
            found["args"], found["kwargs"] = _described(found["args"]), _described(found["kwargs"])
        return found

    @functools.wraps(make_context)
    def offload_context(self: Any) -> Any:
        made = make_context(self)
        if HELD in vars(self):
            setattr(made, HELD, getattr(self, HELD))
            vars(made).pop(EMBED, None)
        return made

    @functools.wraps(send_event)
    def offload_send_event(self: Any, type: str, **fields: Any) -> Any:  # noqa: A002 (Celery's)
        runtime = getattr(self.app, "_offload", None)
        if runtime is not None and "traceback" in fields:
            fields = shorten_fields(runtime, fields)
        return send_event(self, type, **fields)

    context = cached_property(offload_context)
    context.__set_name__(request, CONTEXT)
    setattr(request, CONTEXT, context)
    request.__init__ = offload_init
    request.info = offload_info
    request.send_event = offload_send_event
    request.args = property(lambda self: _for_hooks(self, arguments(self)[0]))
    request.kwargs = property(lambda self: _for_hooks(self, arguments(self)[1]))
    setattr(request, _HOOKED, True)


def _spare_rate_limits() -> None:
    """Exempt calls that waited for an equal call from their task's ``rate_limit``."""
    consumer: Any = getattr(sys.modules.get("celery.worker.consumer.consumer"), "Consumer", None)
    if consumer is None or hasattr(consumer, _HOOKED):
        return
    limited: Callable[..., Any] = getattr(consumer, LIMIT_DELAYED)

    @functools.wraps(limited)
    def offload_limited(self: Any, request: Any, bucket: Any, tokens: Any) -> Any:
        return limited(self, request, bucket, 0 if _has_waited(request) else tokens)

    setattr(consumer, LIMIT_DELAYED, offload_limited)
    setattr(consumer, _HOOKED, True)


def _has_waited(request: Any) -> bool:
    if HELD not in vars(request):
        return False
    note = body_of_request(request)[2].get(EMBED)
    waits = note.get("waits") if isinstance(note, dict) else 0
    return type(waits) is int and waits > 0


def _receive(request: Any) -> None:
    """Restore the references in a received message."""
    args, kwargs, embed = body_of_request(request)
    _check_limits(request)
    embed = embed if isinstance(embed, dict) else {}
    embed = {key: _well_formed(key, part) for key, part in embed.items() if _is_known(request, key)}
    name = ""
    held: list[str] = []
    if (note := embed.pop(EMBED, None)) is not None:
        parts = {**embed, "args": args, "kwargs": kwargs}
        parts, name, held = restore_refs(parts, note)
        args, kwargs = parts.pop("args"), parts.pop("kwargs")
        embed = {**parts, EMBED: note}
    setattr(request, HELD, (name, held))
    set_arguments(request, args, kwargs, embed)


def _is_known(request: Any, key: Any) -> bool:
    """Return whether the embed may have an entry *key*, which becomes an attribute of the context.

    It must not replace the message's own fields, such as its id or task.
    """
    if key in _EMBEDDED or key == EMBED:
        return True
    return isinstance(key, str) and key not in request.request_dict and not hasattr(Context, key)


def _well_formed(key: str, part: Any) -> Any:
    """Return a *part* of the embed; None if Celery would raise for it."""
    kind = _EMBEDDED.get(key)
    return part if kind is None or isinstance(part, (kind, tuple)) else None


def _check_limits(request: Any) -> None:
    """Raise InvalidTaskError for malformed time limits; Celery then rejects the message."""
    limits = request.time_limits
    if not (
        isinstance(limits, (list, tuple))
        and len(limits) == 2
        and all(isinstance(limit, (int, float, type(None))) for limit in limits)
    ):
        raise InvalidTaskError(f"time limits are malformed: {limits!r:.100}")


def _described(value: Any) -> Any:
    """Replace each Ref in *value* by a description, which can't be redeemed."""
    return replace_refs(value, lambda ref: f"<Ref {ref.shown}>")


def _for_hooks(request: Any, value: Any) -> Any:
    """Return arguments as failure hooks in the main process receive them."""
    if HELD not in vars(request) or not contains(value, (Ref,)):
        return value
    task = request.task
    receivers = signals.task_failure.receivers or signals.task_retry.receivers
    if not receivers and not any(task_has_custom(task, hook) for hook in _HOOKS):
        return value
    return readable(request.app._offload, value)  # noqa: SLF001 (set by offload)


def readable(runtime: Runtime, value: Any) -> Any:
    """Replace the Refs in *value* by values, for failure hooks in a worker's main process.

    Those that can't be read, or exceed `READABLE_LIMIT` bytes in total, become a `LostValue`.
    """
    left = READABLE_LIMIT
    failed: Exception | None = None

    def read(ref: Ref[Any]) -> Any:
        nonlocal left, failed
        if failed is not None:
            return LostValue.of(ref, failed)
        try:
            ref = runtime.content.open(ref.wire)
            left -= ref.size
            if left >= 0:
                return ref.get()
            failed = ValueTooLarge(f"over {READABLE_LIMIT} bytes, in a worker's main process")
        except StoreUnavailable as exc:
            failed = exc
        except Exception as exc:  # a decoder may raise anything
            return LostValue.of(ref, exc)
        return LostValue.of(ref, failed)

    return replace_refs(value, read)


def dispatch_stand_in(app: Any) -> None:
    """Dispatch each message that names `STAND_IN` to the task that it is meant for.

    Celery asks tasks for their strategies when a worker connects, and when its pool is restarted.
    """
    task = app.tasks[STAND_IN]
    start: Callable[..., Any] = task.start_strategy
    if hasattr(start, _HOOKED):
        return

    def start_strategy(app: Any, consumer: Any, **options: Any) -> Any:
        own = start(app, consumer, **options)

        def handle(message: Any, *given: Any, **more: Any) -> Any:
            name = own_name(message.headers)
            if name is None:
                return own(message, *given, **more)
            message = copy.copy(message)  # so that a requeued message stays unchanged
            message.headers = {**message.headers, "task": name}
            strategy = consumer.strategies.get(name)
            if strategy is None:
                return consumer.on_unknown_task(None, message, KeyError(name))
            return strategy(message, *given, **more)

        return handle

    setattr(start_strategy, _HOOKED, True)
    task.start_strategy = start_strategy
