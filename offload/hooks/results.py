"""The result backend: store and read results and exceptions by reference, and release their holds.

The methods of the backend object are replaced, not ``app.AsyncResult``, because results are also
read through ``celery.result.AsyncResult`` and by Celery itself.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

from celery import states
from celery.backends import base
from celery.backends.base import KeyValueStoreBackend
from celery.exceptions import Reject
from kombu.exceptions import DecodeError

from offload.content.holds import Hold
from offload.errors import InvalidRef, KeyUnavailable, OffloadError
from offload.hooks import failures, shipped_exceptions
from offload.hooks.celery_internals import (
    CALL_ERRBACKS,
    RESULT_META,
    UNPACK_PART,
    UNPICKLE_BACKEND,
    collects_parts,
    keeps_metadata_whole,
    patch,
)
from offload.hooks.delivery import current_delivery, running
from offload.hooks.message import HELD, MALFORMED, as_wire, task_holder, wire_form
from offload.hooks.paths import contains
from offload.hooks.release import (
    PartKeeper,
    Releaser,
    cleanup_releasing,
    has_ended,
    keeps_rows,
    progress_holder,
    release,
)
from offload.hooks.requests import readable
from offload.hooks.result_refs import Encoded, ResultMeta
from offload.hooks.runtime import Runtime, results_as_refs
from offload.hooks.shipped_exceptions import hook_exceptions
from offload.hooks.stored_states import (
    is_progress,
    part_failure,
    progress_meta,
    put_state,
    read_row,
    replace_state,
    stored_ref,
)
from offload.ref import Ref, has_wire_form, looks_like_ref, wire_text

logger = logging.getLogger(__name__)

_HOOKED = "_offload_hooked"
_read: ContextVar[list[Any] | None] = ContextVar("offload_states_read", default=None)
"""The metadata that the backend reads before it replaces a state."""
_REFERENCE = "offload"
"""Key in a result's stored metadata that has its reference.

Readers without offload ignore this key and see a failed task."""
_UNREADABLE = "offload stores this result; install or upgrade offload here and call Offload(app)"


def install() -> None:
    """Hook the backends of results when they are unpickled, and failures; once per process."""
    patch(base, UNPICKLE_BACKEND, _hooking)
    shipped_exceptions.install()


def _hooking(original: Callable[..., Any]) -> Callable[..., Any]:
    def unpickle_backend(*given: Any) -> Any:
        backend = original(*given)
        runtime = getattr(backend.app, "_offload", None)
        return backend if runtime is None else hook_backend(runtime, backend)

    return unpickle_backend


# -- the result backend


def hook_backend(runtime: Runtime, backend: Any) -> Any:
    """Hook *backend* unless it is hooked already, and return it."""
    if backend is None or hasattr(backend, _HOOKED):
        return backend
    exception_to_python = hook_exceptions(runtime, backend)
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
    has_rows = keeps_rows(backend) and not isinstance(backend, KeyValueStoreBackend)

    def offload_encode_result(result: Any, state: str) -> Any:
        if type(result) is Encoded:
            return result.value
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
        stored = meta["result"]
        failed = meta["status"] in states.EXCEPTION_STATES and failures.is_stand_in(stored)
        meta = meta_from_decoded({**meta, "result": None} if failed else meta)
        for key in ("args", "kwargs"):
            if meta.get(key):
                meta[key] = _with_refs(runtime, meta[key])
        if text is None and meta["status"] == states.SUCCESS:
            text = _reference(meta["result"])  # form of other backends and earlier versions
        if failed:
            suffix = failures.holder_suffix(stored)
            held_by = progress_holder(_task_id(meta), suffix) if suffix else ""
            made: Any = failures.FailureMeta(
                meta, runtime, backend, stored, exception_to_python, held_by
            )
        elif text is None and is_progress(stored):
            made = progress_meta(runtime, meta, _task_id(meta))
        else:
            made = meta if text is None else ResultMeta(meta, runtime, str(text))
        if (read := _read.get()) is not None:
            read.append(made)
        return made

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
        made: Any = None
        own = current_delivery()
        if own is None or own.task_id != task_id:
            own = running(task_id)
        if state != states.SUCCESS or own is None or not own.stores_result:
            made = put_state(runtime, backend, task_id, result, state, traceback, request)
        if made is not None:
            result, traceback = made.encoded, made.traceback
        read: list[Any] = []
        if has_rows:
            read += read_row(runtime, backend, task_id, own, request, made)
        store = store_result
        if own is not None and own.ahead is not None:
            store, own.ahead = partial(own.ahead.during, store_result), None
        token = _read.set(read)
        try:
            done = store(
                task_id, result, state, traceback=traceback, request=_as_arrived(request), **options
            )
        finally:
            _read.reset(token)
        if made is not None or read or (own is not None and own.state is not None):
            replace_state(runtime, backend, task_id, own, request, made, read, has_rows=has_rows)
        if own is not None:
            own.has_stored = True
        return done.value if type(done) is Encoded else done

    def offload_part_return(request: Any, state: str, result: Any, **options: Any) -> Any:
        delivery = current_delivery()
        if delivery is not None and state == states.SUCCESS:
            keeper = runtime.part(PartKeeper)
            if keeper.part_returns(backend, request, delivery.since):
                delivery.parts_are_held = True
        if state in states.EXCEPTION_STATES and collects_parts(backend):
            result = part_failure(runtime, backend, request, state, result)
        with results_as_refs():
            return part_return(request, state, result, **options)

    def offload_mark_as_done(task_id: str, *args: Any, **options: Any) -> Any:
        delivery = current_delivery()
        if delivery is None or delivery.task_id != task_id:
            return mark_as_done(task_id, *args, **options)
        delivery.stores_result = True
        try:
            done = mark_as_done(task_id, *args, **options)
        finally:
            delivery.stores_result = False
        delivery.known.keep_result(None, {})  # the task's own hooks may change its result after
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
        found = stored_ref(runtime, backend, task_id)
        done = forget(task_id)
        if found is not None:
            release(runtime, [found[0]], found[1])
        return done

    def offload_call_task_errbacks(request: Any, exc: Any, traceback: Any) -> Any:
        given = [request.args, request.kwargs]
        delivery = current_delivery()
        is_own = delivery is not None and delivery.task_id == request.id
        # If a chord's body can't run, Celery makes its request from its signature.
        reads = hasattr(request, HELD) or (not is_own and contains(given, (Ref,)))
        if not reads and not any(contains(_plain(each), (Ref,)) for each in request.errbacks):
            return call_errbacks(request, exc, traceback)
        # Call each by itself. If the values of one are missing, the others must still be called.
        # An error raised here would also end the worker in some pools.
        for errback in request.errbacks:
            only = copy.copy(request)
            only.errbacks = [errback]
            try:
                if reads:
                    only.args, only.kwargs = readable(runtime, given)
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
            runtime, backend, lambda task_id: stored_ref(runtime, backend, task_id)
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
            if consumer.on_message is not None:  # the user's function
                meta = offload_meta_from_decoded(meta)
            # Otherwise Celery decodes it on demand; until then, it may copy it, which would
            # read the value.
            return on_state_change(meta, message)

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
    except (InvalidRef, KeyUnavailable):
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
    if request is None:
        return request
    given = getattr(request, "args", None), getattr(request, "kwargs", None)
    delivery = current_delivery()
    if delivery is not None and given[0] is delivery.args:
        arrived = delivery.arrived()
        if arrived is None:
            return request
        given = arrived
    elif contains(given, (Ref,)):  # of a task that the main process ended, or of a later one
        given = as_wire(given[0]), as_wire(given[1])
    else:
        return request
    request = copy.copy(request)
    request.args, request.kwargs = given
    return request


def _task_id(meta: Mapping[str, Any]) -> str:
    return str(meta.get("task_id"))


def _plain(signature: Any) -> Any:
    return dict(signature) if isinstance(signature, dict) else signature


def _request(given: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Return the request from a backend method's arguments.

    It is passed by name, or as the second item of *given*.
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
