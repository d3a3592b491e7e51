"""Store large fields of events (``Task.send_event``), so that events stay small.

Receivers such as Flower see text in place of a large field: its type, its size, and its reference.
`Offload.read_event` returns an event with the values. Events are for watching, so their values
live for only an hour; and if the store fails, the event says so, and the task doesn't fail.

A worker's main process sends events of its own about each task. Those about failures contain the
whole traceback. Here, they keep only its start and end, because the result contains all of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from celery import Task

from offload.content.holds import Hold
from offload.errors import OffloadError, SerializationError
from offload.hooks.celery_internals import patch
from offload.hooks.result_refs import can_skip
from offload.hooks.runtime import Runtime
from offload.ref import Ref, has_wire_form
from offload.serializers.base import Payload
from offload.text import human_size, type_name

logger = logging.getLogger(__name__)

VALUE_TTL = 3600.0
"""Seconds for which the values of an event are held."""

_EXCERPT = 500  # characters of the start and of the end of a text
_CELERY_FIELDS = frozenset({"exception", "traceback"})  # that may be large in Celery's own events


def install() -> None:
    """Hook ``Task.send_event``; once per process."""
    patch(Task, "send_event", _storing)


def _storing(original: Callable[..., Any]) -> Callable[..., Any]:
    def send_event(
        self: Any, type_: str, retry: bool = True, retry_policy: Any = None, **fields: Any
    ) -> Any:
        runtime = getattr(self.app, "_offload", None)
        if runtime is not None:
            fields = {name: _stored(runtime, self, name, each) for name, each in fields.items()}
        return original(self, type_, retry=retry, retry_policy=retry_policy, **fields)

    return send_event


def _stored(runtime: Runtime, task: Any, name: str, value: Any) -> Any:
    """Return the value to send for a field: text with a reference if the field is large."""
    options = runtime.options(task.name)[0]
    forged = _wire_of(value) is not None
    if not forged and (
        can_skip(value, options.threshold) or not options.enabled or runtime.settings.mode != "on"
    ):
        return value
    writer, serializer = runtime.content.writer, runtime.app.conf.event_serializer
    size = 0
    with runtime.counters.about(task.name, "event"):
        try:
            payload = writer.serialize(value, serializer)
            size = payload.size
            if size < (options.threshold or 0) and not forged:
                return value
            runtime.counters.add(values_seen=1)
            ref = _put(runtime, payload)
        except SerializationError as error:
            if not size:
                return value  # Celery raises its own error
            return _lost(runtime, task, name, value, size, error)
        except OffloadError as error:
            return _lost(runtime, task, name, value, size, error)
    return f"<{ref.shown}> {ref.wire}"


def _put(runtime: Runtime, payload: Payload) -> Ref[Any]:
    return runtime.content.writer.put_payload(payload, hold=Hold(VALUE_TTL))


def _lost(
    runtime: Runtime, task: Any, name: str, value: Any, size: int, error: OffloadError
) -> str:
    runtime.counters.failed(error)
    logger.warning("event field %r of task %s isn't stored: %s", name, task.name, error)
    why = f"{human_size(size)} not stored by offload: {type(error).__name__}"
    return f"<{type_name(value)} of {why}>"


def _wire_of(value: Any) -> str | None:
    """Return the wire text in a field that stands for a value; None if it doesn't."""
    if type(value) is not str or not value.startswith("<"):
        return None
    text = value.rpartition("> ")[2]
    return text if has_wire_form(text) else None


def read_event(runtime: Runtime, event: Mapping[str, Any]) -> dict[str, Any]:
    """Return *event* with values in place of the fields that stand for them.

    Raises the same errors as `Offload.get`.
    """
    wires = {name: _wire_of(value) for name, value in event.items()}
    return {
        name: value if (wire := wires[name]) is None else runtime.content.open(wire).get()
        for name, value in event.items()
    }


def shorten_fields(runtime: Runtime, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of Celery's event about a failure, with excerpts of large texts.

    For the main process, which doesn't wait for the store.
    """
    settings = runtime.settings
    limit = max(settings.threshold, 4 * _EXCERPT)
    if settings.mode != "on":
        return dict(fields)
    return {
        name: _excerpt(value) if name in _CELERY_FIELDS and _is_longer(value, limit) else value
        for name, value in fields.items()
    }


def _is_longer(value: Any, limit: int) -> bool:
    return isinstance(value, str) and len(value) >= limit


def _excerpt(text: str) -> str:
    omitted = human_size(len(text) - 2 * _EXCERPT)
    return f"{text[:_EXCERPT]}\n… [{omitted}: see the task's result] …\n{text[-_EXCERPT:]}"
