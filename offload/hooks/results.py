"""Store results by reference in the result backend, and release their holds.

The methods of the backend object are replaced, not ``app.AsyncResult``, because results are also
read through ``celery.result.AsyncResult`` and by Celery itself.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery import states
from celery.backends import base
from celery.backends.base import DisabledBackend
from celery.exceptions import Reject
from celery.result import ResultBase
from kombu.exceptions import DecodeError

from offload.content.holds import Hold, holder
from offload.errors import InvalidRef, OffloadError, SerializationError
from offload.hooks.celery_internals import (
    CALL_ERRBACKS,
    RESULT_META,
    UNPACK_PART,
    UNPICKLE_BACKEND,
    keeps_metadata_whole,
    patch,
)
from offload.hooks.delivery import Delivery, current_delivery, ignores_result
from offload.hooks.exceptions import hook_exceptions
from offload.hooks.message import (
    HELD,
    MALFORMED,
    as_wire,
    body_of,
    described,
    task_holder,
    wire_form,
)
from offload.hooks.paths import contains
from offload.hooks.release import (
    PartKeeper,
    Releaser,
    cleanup_releasing,
    has_ended,
    keeps_rows,
    part_ttl,
    release,
    result_ttl,
)
from offload.hooks.requests import readable
from offload.hooks.result_meta import ResultMeta
from offload.hooks.runtime import Runtime, results_as_refs
from offload.ref import Ref, has_wire_form, looks_like_ref, wire_text
from offload.serializers.base import Payload
from offload.serializers.choose import certainly_small
from offload.settings import TaskOptions

__all__ = ("hook_backend", "install", "put_result")

logger = logging.getLogger(__name__)

_HOOKED = "_offload_hooked"
_ANY_SERIALIZER = ""
_REFERENCE = "offload"
"""Key in a result's stored metadata that has its reference.

Readers without offload ignore this key and see a failed task."""
_UNREADABLE = "offload stores this result; install or upgrade offload here and call Offload(app)"


def install() -> None:
    """Hook the backends of results when they are unpickled; once per process."""
    patch(base, UNPICKLE_BACKEND, _hooking)


def _hooking(original: Callable[..., Any]) -> Callable[..., Any]:
    def unpickle_backend(*given: Any) -> Any:
        backend = original(*given)
        runtime = getattr(backend.app, "_offload", None)
        return backend if runtime is None else hook_backend(runtime, backend)

    return unpickle_backend


# -- after a task has run


def put_result(runtime: Runtime, task: Any, delivery: Delivery, result: Any) -> None:
    """Store the result of *task* right after its function has returned.

    An error is then the task's own failure. *delivery* keeps the reference for callbacks and the
    result backend. Raises OffloadError.
    """
    options = delivery.options.over(runtime.options(task.name)[0])
    if _can_skip(result, options.threshold):
        return
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
        return
    serializer = (
        task.backend.serializer if stored or request.chord else runtime.app.conf.task_serializer
    )
    with runtime.counters.about(task.name, "result"):
        try:
            if is_read:
                _refuse_refs_within(result)
            if not (stored or passed_on):
                return
            hold = _result_hold(runtime, options, delivery, stored=stored)
            ref = _result_ref(runtime, options, result, serializer, hold)
        except OffloadError as exc:
            runtime.counters.failed(exc)
            raise described(exc, task.name, "result") from exc
    if ref is not None:
        delivery.known.keep_result(result, {serializer: ref})
        if not stored and not request.chord:
            delivery.hold(ref)


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
    """Raise SerializationError if a result contains Refs.

    Its reader couldn't distinguish them from data.
    """
    if not isinstance(result, Ref) and contains(result, (Ref,)):
        raise SerializationError(
            f"a result can be a Ref, but this {type(result).__name__} holds Refs within: return "
            "the values, or one Ref to all of them made by Offload.put"
        )


def _can_skip(result: Any, threshold: int | None) -> bool:
    """Return whether *result* certainly isn't replaced, whatever the serializer.

    For most results, nothing else runs.
    """
    return (
        bool(threshold)
        and not looks_like_ref(result)
        and certainly_small(result, threshold - 1, _ANY_SERIALIZER)  # type: ignore[operator]
    )


def _result_ref(
    runtime: Runtime, options: Any, result: Any, serializer: str, hold: Hold
) -> Ref[Any] | None:
    """Return the reference that replaces *result*; None if it isn't replaced."""
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
    threshold = options.threshold
    if runtime.settings.mode == "observe":
        runtime.observer.observe(result, serializer, threshold)
        return None
    writer = runtime.content.writer
    found = writer.prepare(result, celery_serializer=serializer, hold=hold, threshold=threshold)
    if not isinstance(found, Payload):
        return found
    return writer.put_or_inline(found, hold=hold, value=result, celery_serializer=serializer)


# -- the result backend


def hook_backend(runtime: Runtime, backend: Any) -> Any:
    """Hook *backend* unless it is hooked already, and return it."""
    if backend is None or hasattr(backend, _HOOKED):
        return backend
    hook_exceptions(runtime, backend)
    encode_result: Callable[..., Any] = backend.encode_result
    meta_from_decoded: Callable[..., Any] = backend.meta_from_decoded
    store_result: Callable[..., Any] = backend.store_result
    mark_as_done: Callable[..., Any] = backend.mark_as_done
    mark_as_failure: Callable[..., Any] = backend.mark_as_failure
    mark_as_revoked: Callable[..., Any] = backend.mark_as_revoked
    forget: Callable[..., Any] = backend.forget
    call_errbacks: Callable[..., Any] = getattr(backend, CALL_ERRBACKS)
    part_return: Callable[..., Any] = backend.on_chord_part_return
    result_meta: Callable[..., Any] = getattr(backend, RESULT_META)

    def offload_encode_result(result: Any, state: str) -> Any:
        delivery = current_delivery()
        if state == states.SUCCESS and delivery is not None:
            ref = delivery.known.result_ref(result, backend.serializer)
            if ref is not None:
                return wire_form(ref, backend.serializer)
        if state == states.SUCCESS and looks_like_ref(result):  # a task stored its result itself
            hold = Hold(runtime.retention)
            ref = runtime.content.writer.put_escaped(
                result, celery_serializer=backend.serializer, hold=hold
            )
            return wire_form(ref, backend.serializer)
        return encode_result(result, state)

    def offload_meta_from_decoded(meta: Any) -> Any:
        if isinstance(meta, ResultMeta):
            return meta
        text = meta.get(_REFERENCE)
        if text is not None:
            meta = {**meta, "status": states.SUCCESS, "result": None}
        meta = meta_from_decoded(meta)
        for key in ("args", "kwargs"):
            if meta.get(key):
                meta[key] = _with_refs(runtime, meta[key])
        if text is None and meta["status"] == states.SUCCESS:
            text = _reference(meta["result"])  # form of other backends and earlier versions
        if text is None:
            return meta
        return ResultMeta(meta, lambda: runtime.results_content.open(str(text)))

    def offload_result_meta(result: Any, state: str, *given: Any, **options: Any) -> Any:
        meta = result_meta(result, state, *given, **options)
        text = _reference(result) if state == states.SUCCESS else None
        if text is not None:
            # A reader without offload gets this error when it reads this result.
            error = type(backend).prepare_exception(backend, DecodeError(_UNREADABLE))
            meta.update({"status": states.FAILURE, "result": error, _REFERENCE: text})
        return meta

    def offload_store_result(
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **options: Any,
    ) -> Any:
        return store_result(
            task_id, result, state, traceback=traceback, request=_as_arrived(request), **options
        )

    def offload_part_return(request: Any, state: str, result: Any, **options: Any) -> Any:
        delivery = current_delivery()
        if delivery is not None and state == states.SUCCESS:
            keeper = runtime.part(PartKeeper)
            if keeper.part_returns(backend, request, delivery.since):
                delivery.parts_are_held = True
        with results_as_refs():
            return part_return(request, state, result, **options)

    def offload_mark_as_done(*args: Any, **options: Any) -> Any:
        done = mark_as_done(*args, **options)
        delivery = current_delivery()
        if delivery is not None:  # the task's own hooks may change its result after this
            delivery.known.keep_result(None, {})
        return done

    def offload_mark_as_failure(task_id: str, exc: Any, *given: Any, **options: Any) -> Any:
        try:
            done = mark_as_failure(task_id, exc, *given, **options)
        except MALFORMED:
            if not hasattr(_request(given, options), HELD):
                raise
            logger.exception("the callbacks of failed task %s can't be called", task_id)
            done = None
        if not isinstance(exc, Reject):  # a rejected message may go to a dead letter queue
            _release_request(runtime, task_id, _request(given, options), states.FAILURE)
        return done

    def offload_mark_as_revoked(task_id: str, *given: Any, **options: Any) -> Any:
        done = mark_as_revoked(task_id, *given, **options)
        _release_request(runtime, task_id, _request(given, options), states.REVOKED)
        return done

    def offload_forget(task_id: str) -> Any:
        ref = _stored_ref(runtime, backend, task_id)
        done = forget(task_id)
        if ref is not None:
            release(runtime, [ref], holder("result", task_id))
        return done

    def offload_call_task_errbacks(request: Any, exc: Any, traceback: Any) -> Any:
        in_main = hasattr(request, HELD)
        if not in_main and not any(contains(_plain(each), (Ref,)) for each in request.errbacks):
            return call_errbacks(request, exc, traceback)
        # Call each by itself. If the values of one are missing, the others must still be called.
        # An error raised here would also end the worker in some pools.
        for errback in request.errbacks:
            only = copy.copy(request)
            only.errbacks = [errback]
            try:
                if in_main:
                    only.args, only.kwargs = readable(runtime, [request.args, request.kwargs])
                call_errbacks(only, exc, traceback)
            except (OffloadError, *MALFORMED):
                logger.exception("error callback %.200r cannot be called", errback)
        return None

    setattr(backend, CALL_ERRBACKS, offload_call_task_errbacks)
    backend.mark_as_done = offload_mark_as_done
    backend.mark_as_failure = offload_mark_as_failure
    backend.mark_as_revoked = offload_mark_as_revoked
    backend.forget = offload_forget
    if keeps_rows(backend):
        backend.cleanup = cleanup_releasing(
            runtime, backend, lambda task_id: _stored_ref(runtime, backend, task_id)
        )
    backend.encode_result = offload_encode_result
    backend.meta_from_decoded = offload_meta_from_decoded
    backend.store_result = offload_store_result
    if keeps_metadata_whole(backend):
        setattr(backend, RESULT_META, offload_result_meta)
    consumer = getattr(backend, "result_consumer", None)
    if consumer is not None:
        on_state_change: Callable[..., Any] = consumer.on_state_change

        def offload_on_state_change(meta: Any, message: Any) -> Any:
            return on_state_change(offload_meta_from_decoded(meta), message)

        consumer.on_state_change = offload_on_state_change
    backend.on_chord_part_return = offload_part_return
    if hasattr(backend, UNPACK_PART):  # Redis decodes parts itself
        unpack: Callable[..., Any] = getattr(backend, UNPACK_PART)

        def offload_unpack(*args: Any, **options: Any) -> Any:
            part = unpack(*args, **options)
            text = _reference(part)
            return part if text is None else runtime.results_content.open(text)

        setattr(backend, UNPACK_PART, offload_unpack)
    setattr(backend, _HOOKED, True)
    return backend


def _reference(value: Any) -> str | None:
    """Return the wire text of a stored result that is a reference; None if it is data.

    Data that looks like a reference is escaped before it is stored (see `Writer.put_escaped`).
    So a result of this form is either a reference that offload wrote, or a forged one.
    """
    text = wire_text(value)
    return text if text is not None and has_wire_form(text) else None


def _opened(runtime: Runtime, value: Any) -> Ref[Any] | None:
    """Return a stored argument as a reference; None if it is data."""
    text = wire_text(value)
    if text is None:
        return None
    try:
        return runtime.results_content.open(text)
    except InvalidRef:
        return None


def _with_refs(runtime: Runtime, arguments: Any) -> Any:
    """Return stored arguments (``result_extended``) with Refs in place of wire text."""
    if isinstance(arguments, dict):
        return {key: _opened(runtime, value) or value for key, value in arguments.items()}
    if isinstance(arguments, (list, tuple)):
        return [_opened(runtime, value) or value for value in arguments]
    return arguments


def _as_arrived(request: Any) -> Any:
    """Return *request* with its arguments as they arrived, for ``result_extended``."""
    delivery = current_delivery()
    if request is None:
        return request
    if hasattr(request, HELD) and contains([request.args, request.kwargs], (Ref,)):
        request = copy.copy(request)
        request.args, request.kwargs = as_wire(request.args), as_wire(request.kwargs)
        return request
    if delivery is None:
        return request
    arrived = delivery.arrived()
    if arrived is None or getattr(request, "args", None) is not delivery.args:
        return request
    request = copy.copy(request)
    request.args, request.kwargs = arrived
    return request


def _plain(signature: Any) -> Any:
    return dict(signature) if isinstance(signature, dict) else signature


def _request(given: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Return the request from a backend method's arguments.

    It is passed by name, or as the second of *given*.
    """
    return options.get("request", given[1] if len(given) > 1 else None)


def _release_request(runtime: Runtime, task_id: str, request: Any, state: str) -> None:
    """Release the holds of a message whose task was ended by the worker's main process."""
    message, held = getattr(request, HELD, ("", []))
    if not (message and held):
        return
    task = runtime.app.tasks.get(request.task)
    if task is not None and has_ended(task, state):
        runtime.part(Releaser).submit(held, task_holder(task_id, message), request.delivery_info)


def _stored_ref(runtime: Runtime, backend: Any, task_id: str) -> Ref[Any] | None:
    """Return the reference of a stored result; None if it has none or holds aren't tracked."""
    try:
        if not runtime.store.blobs.tracks_holds:
            return None
        meta = backend.get_task_meta(task_id)
        if isinstance(meta, ResultMeta):
            with results_as_refs():
                found = meta["result"]
            return found if isinstance(found, Ref) else None
    except Exception as exc:  # forgetting a result must work nevertheless
        logger.info("result %s keeps its value until it expires: %s", task_id, exc)
    return None
