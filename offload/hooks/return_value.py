"""Store what a task's function has returned, before Celery stores it or passes it on."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

from celery.backends.base import DisabledBackend
from celery.result import ResultBase

from offload.content.holds import Hold, holder
from offload.errors import OffloadError, SerializationError
from offload.hooks.delivery import Delivery, ignores_result
from offload.hooks.message import body_of, described, task_holder
from offload.hooks.paths import contains
from offload.hooks.release import part_ttl, result_ttl
from offload.hooks.result_refs import can_skip, result_ref
from offload.hooks.runtime import Runtime
from offload.ref import Ref
from offload.settings import TaskOptions

_LONGEST_ID = 255  # characters of a task's id in metadata


def keep_result(
    runtime: Runtime, task: Any, delivery: Delivery, result: Any, name: str | None
) -> Ref[Any] | None:
    """Store the result, if it is large, and save it as the next version of *name* in the catalog,
    if it isn't None; return its reference, if it is stored.

    An error fails the task: otherwise the object would be missing.
    """
    if inspect.isawaitable(result):
        return None
    ref = _put_result(runtime, task, delivery, result)
    if name is None:
        return ref
    is_stored = ref is not None and ref.digest is not None
    metadata = {"task": task.name, "task_id": str(task.request.id)[:_LONGEST_ID]}
    with runtime.counters.about(task.name, "result"):
        try:
            runtime.catalog.save(name, ref if is_stored else result, metadata=metadata)
        except OffloadError as exc:
            runtime.counters.failed(exc)
            raise described(exc, task.name, "result") from exc
    return ref


def _put_result(runtime: Runtime, task: Any, delivery: Delivery, result: Any) -> Ref[Any] | None:
    """Store the result of *task* right after its function has returned; return its reference, or
    None if it isn't stored.

    An error is then the task's own failure. *delivery* keeps the reference for callbacks and the
    result backend. Raises OffloadError.
    """
    options = delivery.options.over(runtime.options(task.name)[0])
    if can_skip(result, options.threshold):
        return None
    request = task.request
    stored = not ignores_result(task, request)
    stored = stored and not isinstance(task.backend, DisabledBackend)
    is_read = stored or bool(request.chord)
    if request.is_eager:
        stored = stored and task.store_eager_result
        passed_on = False
    else:
        passed_on = bool(request.callbacks or request.chain or request.chord)
    if not (is_read or passed_on) or isinstance(result, ResultBase):
        return None
    serializer = (
        task.backend.serializer if stored or request.chord else runtime.app.conf.task_serializer
    )
    with runtime.counters.about(task.name, "result"):
        try:
            if is_read:
                _refuse_refs_within(result)
            if not (stored or passed_on):
                return None
            hold = _result_hold(runtime, options, delivery, stored=stored)
            with delivery.reading_state() if stored and not request.is_eager else nullcontext():
                ref = result_ref(runtime, options, result, serializer, hold)
        except OffloadError as exc:
            runtime.counters.failed(exc)
            raise described(exc, task.name, "result") from exc
    if ref is not None:
        delivery.known.keep_result(result, {serializer: ref})
        if not stored and not request.chord:
            delivery.hold(ref)
    return ref


def _result_hold(
    runtime: Runtime, options: TaskOptions, delivery: Delivery, *, stored: bool
) -> Hold:
    """Return the hold for the result.

    The holder is the result if the backend stores it, or the body of the chord if the task is a
    part of one. Otherwise it is the task's own message: callbacks add holds of their own.
    """
    request = delivery.task.request
    ttl = result_ttl(runtime, options)
    if request.chord:
        ttl = max(ttl, part_ttl(delivery.task.backend))
    if stored:
        return Hold(ttl, holder("result", request.id))
    if request.chord:
        body = body_of(request)
        return Hold(ttl, task_holder(body) if body else holder("result", request.id))
    retention = runtime.retention if options.retention is None else options.retention
    return Hold(retention, delivery.holder)


def _refuse_refs_within(result: Any) -> None:
    """Raise SerializationError if a result contains Refs, or is a late one.

    Its reader couldn't distinguish them from data, or could read another object each time.
    """
    if isinstance(result, Ref) and result.late is not None:
        raise SerializationError(
            f"a result can't be {result!r}: return the reference of a version, by Catalog.ref"
        )
    if not isinstance(result, Ref) and contains(result, (Ref,)):
        raise SerializationError(
            f"a result can be a Ref, but this {type(result).__name__} holds Refs within: return "
            "the values, or one Ref to all of them made by Offload.put"
        )
