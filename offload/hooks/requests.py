"""Task requests in a worker's main process: references in place of wire data, never values.

The main process decodes each message to answer ``inspect``, to start the task at its time,
and to end it itself where it is revoked, expired, or killed. From here on, what a message's
note calls a reference is an unverified Ref there, so it can't be mistaken for data, and
nothing is fetched. Values are read only for failure hooks of tasks that the main process
ends, and no more than `LIMIT` bytes of them.

Whatever a message holds, nothing here raises: an error in the main process ends the worker,
and the broker gives the message to the next one.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.app.trace import task_has_custom
from celery.exceptions import InvalidTaskError
from kombu.utils.objects import cached_property

from offload.errors import StoreUnavailable, ValueTooLarge
from offload.hooks.celery_internals import (
    CONTEXT,
    arguments,
    body_of_request,
    context_maker,
    set_arguments,
)
from offload.hooks.message import EMBED, HELD, restore_refs
from offload.hooks.paths import contains, replace_refs
from offload.hooks.runtime import Runtime
from offload.ref import LostValue, Ref

__all__ = ("LIMIT", "install", "readable")

logger = logging.getLogger(__name__)

LIMIT = 64 * 1024 * 1024
"""Bytes of one task's arguments that the main process reads for failure hooks."""

_PATCH = "_offload_original"
_HOOKS = ("on_failure", "after_return", "on_retry")
_EMBEDDED = {"callbacks": list, "errbacks": list, "chain": list, "chord": dict}


def install() -> None:
    """Hook the requests of apps with offload, once per process that runs a worker."""
    module = sys.modules.get("celery.worker.request")
    if module is None or hasattr(module.Request, _PATCH):
        return
    request: Any = module.Request
    init: Callable[..., None] = request.__init__
    info: Callable[..., dict[str, Any]] = request.info
    make_context = context_maker(request)

    @functools.wraps(init)
    def offload_init(self: Any, message: Any, *args: Any, **options: Any) -> None:
        init(self, message, *args, **options)
        if getattr(self.app, "_offload", None) is not None:
            _arrive(self)

    @functools.wraps(info)
    def offload_info(self: Any, safe: bool = False) -> dict[str, Any]:
        found = info(self, safe)
        if HELD in vars(self):
            found["args"], found["kwargs"] = _shown(found["args"]), _shown(found["kwargs"])
        return found

    @functools.wraps(make_context)
    def offload_context(self: Any) -> Any:
        made = make_context(self)
        if HELD in vars(self):
            setattr(made, HELD, getattr(self, HELD))
            vars(made).pop(EMBED, None)
        return made

    context = cached_property(offload_context)
    context.__set_name__(request, CONTEXT)
    setattr(request, CONTEXT, context)
    request.__init__ = offload_init
    request.info = offload_info
    request.args = property(lambda self: _for_hooks(self, arguments(self)[0]))
    request.kwargs = property(lambda self: _for_hooks(self, arguments(self)[1]))
    setattr(request, _PATCH, init)


def _arrive(request: Any) -> None:
    """Mark the references in a request's message."""
    args, kwargs, embed = body_of_request(request)
    _check_limits(request)
    embed = embed if isinstance(embed, dict) else {}
    embed = {key: _well_formed(key, part) for key, part in embed.items()}
    name = ""
    held: list[str] = []
    if (note := embed.pop(EMBED, None)) is not None:
        parts = {**embed, "args": args, "kwargs": kwargs}
        parts, name, held = restore_refs(parts, note)
        args, kwargs = parts.pop("args"), parts.pop("kwargs")
        embed = {**parts, EMBED: note}
    setattr(request, HELD, (name, held))
    set_arguments(request, args, kwargs, embed)


def _well_formed(key: str, part: Any) -> Any:
    """Return a *part* of the embed; None for what Celery can't take there, and would raise for."""
    kind = _EMBEDDED.get(key)
    return part if kind is None or isinstance(part, (kind, tuple)) else None


def _check_limits(request: Any) -> None:
    """Raise InvalidTaskError, for which Celery rejects a message, for time limits that are none."""
    limits = request.time_limits
    if not (
        isinstance(limits, (list, tuple))
        and len(limits) == 2
        and all(isinstance(limit, (int, float, type(None))) for limit in limits)
    ):
        raise InvalidTaskError(f"time limits are malformed: {limits!r:.100}")


def _shown(value: Any) -> Any:
    """Return *value* with a description in place of each Ref: nobody can redeem it."""
    return replace_refs(value, lambda ref: f"<Ref {ref.shown}>")


def _for_hooks(request: Any, value: Any) -> Any:
    """Return what failure hooks in the main process are given for *value*, arguments."""
    if HELD not in vars(request) or not contains(value, (Ref,)):
        return value
    task = request.task
    receivers = signals.task_failure.receivers or signals.task_retry.receivers
    if not receivers and not any(task_has_custom(task, hook) for hook in _HOOKS):
        return value
    return readable(request.app._offload, value)  # noqa: SLF001 (ours)


def readable(runtime: Runtime, value: Any) -> Any:
    """Return *value* with values in place of its Refs, as far as they can be read, and are not
    too large for the main process; others are a `LostValue`.
    """
    left = LIMIT
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
            failed = ValueTooLarge(f"over {LIMIT} bytes, in a worker's main process")
        except StoreUnavailable as exc:
            failed = exc
        except Exception as exc:  # it may be anything that a decoder raises
            return LostValue.of(ref, exc)
        return LostValue.of(ref, failed)

    return replace_refs(value, read)
