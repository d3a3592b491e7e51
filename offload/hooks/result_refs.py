"""References in place of large results, and of other things that the result backend stores."""

from __future__ import annotations

from typing import Any

from celery.result import ResultBase

from offload.content.holds import Hold
from offload.hooks.delivery import current_delivery, running
from offload.hooks.runtime import Runtime
from offload.ref import Ref, looks_like_ref
from offload.serializers.base import Payload
from offload.serializers.choose import certainly_small
from offload.settings import TaskOptions

__all__ = ("Encoded", "can_skip", "options_of", "result_ref")

_ANY_SERIALIZER = ""


class Encoded:
    """A result in the form in which the backend stores it; `encode_result` passes it on."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def options_of(runtime: Runtime, task_id: str, request: Any) -> tuple[str, TaskOptions]:
    """Return the name of the task whose state is stored, and the options in force for it."""
    delivery = running(task_id) or current_delivery()
    if delivery is not None:
        name = delivery.task.name
        return name, delivery.options.over(runtime.options(name)[0])
    name = getattr(request, "task", None)
    name = name if isinstance(name, str) else ""
    return name, runtime.options(name)[0]


def can_skip(result: Any, threshold: int | None) -> bool:
    """Return whether *result* certainly isn't replaced, whatever the serializer.

    For most results, nothing else runs.
    """
    return (
        bool(threshold)
        and not looks_like_ref(result)
        and certainly_small(result, threshold - 1, _ANY_SERIALIZER)  # type: ignore[operator]
    )


def result_ref(
    runtime: Runtime,
    options: TaskOptions,
    result: Any,
    serializer: str,
    hold: Hold,
    salt: str = "",
) -> Ref[Any] | None:
    """Return the reference that replaces *result*; None if it isn't replaced.

    *salt* is that of a new payload.

    Raises: SerializationError, ValueTooLarge, StoreUnavailable, StoreError.
    """
    if isinstance(result, ResultBase):
        return None
    if isinstance(result, Ref):
        ref = runtime.content.opened(result)
        runtime.content.holds.add([ref], hold)
        return ref
    if looks_like_ref(result):  # a user's data, which must not be read as a reference
        return runtime.content.writer.put_escaped(result, celery_serializer=serializer, hold=hold)
    least = runtime.inspection_threshold(options)
    if least and certainly_small(result, least - 1, serializer):
        return None
    if not (options.enabled and options.results):
        return None
    runtime.counters.add(values_seen=1)
    threshold = options.threshold or 0
    if runtime.settings.mode == "observe":
        runtime.observer.observe(result, serializer, threshold)
        return None
    writer = runtime.content.writer
    found = writer.prepare(
        result, celery_serializer=serializer, hold=hold, threshold=threshold, salt=salt
    )
    if not isinstance(found, Payload):
        return found
    return writer.put_or_inline(found, hold=hold, value=result, celery_serializer=serializer)
