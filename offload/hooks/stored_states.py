"""Failures and progress in the result backend: store large ones, and release what they replace.

Large progress (``update_state(meta=…)``) leaves a small dict in the backend that any reader can
decode; it tells readers without offload what to install.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from celery import states

from offload.content.holds import Hold, holder
from offload.errors import OffloadError
from offload.hooks import failures
from offload.hooks.delivery import Delivery, is_redelivered, running
from offload.hooks.message import HELD, described, wire_form
from offload.hooks.release import (
    UNIQUE,
    Releaser,
    new_suffix,
    part_ttl,
    progress_holder,
    release,
    result_ttl,
    state_ttl,
)
from offload.hooks.result_refs import Encoded, ResultMeta, can_skip, options_of, result_ref
from offload.hooks.runtime import Runtime
from offload.ref import Ref, has_wire_form, looks_like_ref
from offload.settings import TaskOptions

logger = logging.getLogger(__name__)

_ONE_QUEUE = {"exchange": ""}
"""Tells the `Releaser` that no other queue has a copy, so that it doesn't ask the broker."""


class _Made(NamedTuple):
    """Replacement for a large failure or large progress, which the result backend stores.

    *held* is the value's reference and holder if another state will replace this one.
    """

    encoded: Encoded
    traceback: Any
    held: tuple[Ref[Any], str] | None


def put_state(
    runtime: Runtime,
    backend: Any,
    task_id: str,
    result: Any,
    state: str,
    traceback: Any,
    request: Any,
) -> _Made | None:
    """Store a task's state and return its replacement; None if Celery stores it as usual."""
    name, options = options_of(runtime, task_id, request)
    if state not in states.EXCEPTION_STATES:
        put = put_progress(runtime, backend, task_id, result, state, name=name, options=options)
        if put is None:
            return None
        encoded, ref, held_by = put
        held = None if state == states.SUCCESS else (ref, held_by)
        return _Made(encoded, traceback, held)
    if hasattr(request, HELD):  # the main process doesn't wait for the store; its errors are small
        return None
    is_replaced = state == states.RETRY
    suffix = new_suffix(UNIQUE) if is_replaced else ""
    held_by = progress_holder(task_id, suffix) if is_replaced else holder("result", task_id)

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
    return _Made(encoded, excerpt, held)


def read_row(
    runtime: Runtime, backend: Any, task_id: str, delivery: Delivery | None, request: Any, made: Any
) -> Iterable[Any]:
    """Return the metadata that is about to be replaced in a database, if it may have a large value.

    Other backends read it themselves. A database is queried only if another message or process may
    have stored it: if the task is retried, was delivered before, or was killed.
    """
    if delivery is not None:
        if delivery.state is not None or delivery.has_stored:
            return ()
        if not (
            (made is not None and made.held is not None)
            or request is None
            or request.retries
            or is_redelivered(vars(request))
        ):
            return ()
    elif not (hasattr(request, HELD) or (made is not None and made.held is not None)):
        return ()
    if runtime.app.conf.task_always_eager:
        return ()  # Celery warns about reading results
    try:
        return [backend.get_task_meta(task_id)]
    except Exception as exc:  # storing the new state must work nevertheless
        logger.info("the replaced state of %s keeps its value until it expires: %s", task_id, exc)
        return ()


def replace_state(
    runtime: Runtime,
    backend: Any,
    task_id: str,
    delivery: Delivery | None,
    request: Any,
    made: _Made | None,
    read: Iterable[Any],
    *,
    has_rows: bool,
) -> None:
    """Release the state that was replaced, and remember the one that replaced it.

    Args:
        read: the metadata that the backend had, if it was read.
        has_rows: whether the backend is a database.
    """
    held = None if made is None else made.held
    former: dict[str, Ref[Any]] = {}
    for meta in read:
        if isinstance(meta, ResultMeta) and meta.holder:
            former[meta.holder] = Ref.unbound(meta.wire)
        elif (
            held is not None
            and meta["status"] == states.SUCCESS
            # A task that has succeeded runs again. Celery keeps its result; some databases don't.
            and (not has_rows or _has_succeeded(backend, task_id))
        ):
            former[held[1]], held = held[0], None
    if delivery is not None:
        if delivery.state is not None:
            former[delivery.state[1]] = delivery.state[0]
        delivery.state = held
    in_main = hasattr(request, HELD)
    for name, ref in former.items():
        if in_main:  # which doesn't wait for the store
            runtime.part(Releaser).submit([ref.wire], name, _ONE_QUEUE)
        else:
            release(runtime, [ref], name, later=True)


def _has_succeeded(backend: Any, task_id: str) -> bool:
    """Return whether a database has the result of a task; False if it can't be read."""
    try:
        return bool(backend.get_task_meta(task_id, cache=False)["status"] == states.SUCCESS)
    except Exception as exc:  # the new state is stored
        logger.info("the state of %s keeps its value until it expires: %s", task_id, exc)
        return False


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


_REF, _HELD, _HINT = "offload_progress", "offload_holder", "offload"
_READ_IT = "install or upgrade offload here and call Offload(app)"


def put_progress(
    runtime: Runtime,
    backend: Any,
    task_id: str,
    value: Any,
    state: str,
    *,
    name: str,
    options: TaskOptions,
) -> tuple[Encoded, Ref[Any], str] | None:
    """Store a large result or large progress.

    Returns its replacement, its reference, and its holder; None if it is to be stored as usual.

    Raises OffloadError, which names the task.
    """
    forged = type(value) is dict and _REF in value
    if not forged and can_skip(value, options.threshold):
        return None
    stays = runtime.settings.mode != "on" or not (options.enabled and options.results)
    if stays and not (forged or looks_like_ref(value) or isinstance(value, Ref)):
        if runtime.settings.mode == "observe":
            result_ref(runtime, options, value, backend.serializer, Hold(0.0))  # counts it
        return None
    is_result = state == states.SUCCESS
    salt = "" if is_result or forged or looks_like_ref(value) or isinstance(value, Ref) else UNIQUE
    suffix = new_suffix(salt)
    held_by = holder("result", task_id) if is_result else progress_holder(task_id, suffix)
    ttl = result_ttl(runtime, options) if is_result else state_ttl(runtime, options)
    hold = Hold(ttl, held_by)
    with runtime.counters.about(name, "result" if is_result else "progress"):
        try:
            ref = result_ref(runtime, options, value, backend.serializer, hold, salt and suffix)
            if ref is None and forged:
                writer = runtime.content.writer
                ref = writer.put(value, celery_serializer=backend.serializer, hold=hold)
        except OffloadError as exc:
            runtime.counters.failed(exc)
            raise described(exc, name, "result" if is_result else "progress") from exc
    if ref is None:
        return None
    if is_result:
        return Encoded(wire_form(ref, backend.serializer)), ref, held_by
    hint = f"{ref.shown}: {_READ_IT}"
    return Encoded({_REF: ref.wire, _HELD: suffix, _HINT: hint}), ref, held_by


def is_progress(stored: Any) -> bool:
    """Return whether *stored*, as the backend has it, stands for large progress."""
    return (
        type(stored) is dict
        and stored.keys() == {_REF, _HELD, _HINT}
        and isinstance(stored[_REF], str)
        and has_wire_form(stored[_REF])
    )


def progress_meta(runtime: Runtime, meta: dict[str, Any], task_id: str) -> ResultMeta:
    """Return metadata whose ``result``, large progress, is fetched when it is accessed."""
    stored = meta["result"]
    text, suffix = stored[_REF], str(stored[_HELD])
    held_by = progress_holder(task_id, suffix if suffix.isalnum() else "")
    meta = {**meta, "result": None}
    return ResultMeta(meta, runtime, text, held_by)
