"""Failures and progress in the result backend: store large ones, and release what they replace."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from celery import states
from celery.backends.base import KeyValueStoreBackend

from offload.content.holds import Hold, holder
from offload.hooks import failures, progress
from offload.hooks.delivery import Delivery, running
from offload.hooks.message import HELD
from offload.hooks.release import keeps_rows, part_ttl, release, result_ttl, state_ttl
from offload.hooks.result_meta import ResultMeta
from offload.hooks.result_refs import Encoded, options_of
from offload.hooks.runtime import Runtime
from offload.ref import Ref

__all__ = ("part_failure", "put_state", "replace_state", "stored_ref")

logger = logging.getLogger(__name__)


class _Made(NamedTuple):
    """Replacement of a large failure or of large progress in the result backend.

    *held* is its reference and holder if another state will replace it; *former* is that of the
    state that it replaces itself, if no delivery knows it.
    """

    encoded: Encoded
    traceback: Any
    held: tuple[Ref[Any], str] | None
    former: tuple[Ref[Any], str] | None = None


def put_state(
    runtime: Runtime,
    backend: Any,
    task_id: str,
    result: Any,
    state: str,
    traceback: Any,
    request: Any,
) -> _Made | None:
    """Store what a task's state consists of, if it is large; None if it is stored as usual."""
    name, options = options_of(runtime, task_id, request)
    if state not in states.EXCEPTION_STATES:
        put = progress.put(runtime, backend, task_id, result, state, name=name, options=options)
        if put is None:
            return None
        encoded, ref, held_by = put
        held = None if state == states.SUCCESS else (ref, held_by)
        return _Made(encoded, traceback, held, _former(runtime, backend, task_id, held))
    if hasattr(request, HELD):  # the main process doesn't wait for the store; its errors are small
        return None
    is_replaced = state == states.RETRY
    suffix = progress.new_suffix() if is_replaced else ""
    held_by = (
        progress.progress_holder(task_id, suffix) if is_replaced else holder("result", task_id)
    )

    def hold() -> Hold:
        ttl = (state_ttl if is_replaced else result_ttl)(runtime, options)
        in_chord = bool(getattr(request, "chord", None))
        return Hold(max(ttl, part_ttl(backend)) if in_chord else ttl, held_by)

    failed = failures.put(
        runtime,
        backend,
        result,
        state,
        traceback,
        name=name,
        options=options,
        hold=hold,
        suffix=suffix,
    )
    if failed is None:
        return None
    encoded, excerpt, stored = failed
    delivery = running(task_id)
    if delivery is not None:
        delivery.failure = result, encoded
    held = (stored, held_by) if is_replaced and stored is not None else None
    return _Made(encoded, excerpt, held, _former(runtime, backend, task_id, held))


def replace_state(runtime: Runtime, delivery: Delivery | None, made: _Made | None) -> None:
    """Release the state that was replaced, and remember the one that replaced it."""
    former = None if made is None else made.former
    if delivery is not None:
        former = delivery.state or former
        delivery.state = None if made is None else made.held
    if former is not None:
        release(runtime, [former[0]], former[1], later=True)


def _former(
    runtime: Runtime, backend: Any, task_id: str, held: tuple[Ref[Any], str] | None
) -> tuple[Ref[Any], str] | None:
    """Return the state that *held* replaces, if it isn't known to the delivery of the task: it is
    stored by another process, or by an earlier delivery.
    """
    delivery = running(task_id)
    if held is None or (delivery is not None and delivery.state is not None):
        return None
    if not (isinstance(backend, KeyValueStoreBackend) or keeps_rows(backend)):
        return None  # reading the message would consume it before its reader sees it
    if runtime.app.conf.task_always_eager:
        return None  # Celery warns about reading results
    found = stored_ref(runtime, backend, task_id)
    return found if found is not None and found[1].startswith("progress:") else None


def part_failure(runtime: Runtime, backend: Any, request: Any, state: str, result: Any) -> Any:
    """Return the entry that the backend collects for a failed part of a chord."""
    delivery = running(request.id)
    if delivery is not None and delivery.failure is not None and delivery.failure[0] is result:
        return delivery.failure[1]
    name, options = options_of(runtime, request.id, request)
    if hasattr(request, HELD):
        return result

    def hold() -> Hold:
        ttl = max(result_ttl(runtime, options), part_ttl(backend))
        return Hold(ttl, holder("result", request.id))

    failed = failures.put(
        runtime, backend, result, state, None, name=name, options=options, hold=hold
    )
    return result if failed is None else failed[0]


def stored_ref(runtime: Runtime, backend: Any, task_id: str) -> tuple[Ref[Any], str] | None:
    """Return the reference of what is stored for a task, and its holder; None if there is none, or
    if holds aren't tracked.
    """
    try:
        if not runtime.store.blobs.tracks_holds:
            return None
        meta = backend.get_task_meta(task_id)
        if isinstance(meta, ResultMeta):
            return meta.ref, meta.holder or holder("result", task_id)
    except Exception as exc:  # forgetting a result must work nevertheless
        logger.info("result %s keeps its value until it expires: %s", task_id, exc)
    return None
