"""The result backend: store and read results and exceptions by reference, and release their holds.

The methods of the backend object are replaced, not ``app.AsyncResult``, because results are also
read through ``celery.result.AsyncResult`` and by Celery itself.

Celery keeps an exception only if plain pickle can carry it; others, such as those of a class that
this worker loaded from a store, it replaces by a parent class or a wrapper. Here the original
reaches the result backend. The backend stores what Celery would store, and beside it a reference to
the exception: readers that may load its class receive the original, others Celery's replacement.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from billiard.einfo import ExceptionInfo
from celery import states
from celery.app import trace
from celery.backends import base
from celery.backends.base import KeyValueStoreBackend
from celery.exceptions import Reject
from celery.utils.serialization import ensure_serializable
from kombu.exceptions import DecodeError

from offload.classes.policy import OFF
from offload.content.holds import Hold, holder
from offload.errors import InvalidRef, KeyUnavailable, OffloadError, SerializationError
from offload.hooks import failures, progress
from offload.hooks.celery_internals import (
    CALL_ERRBACKS,
    RESULT_META,
    UNPACK_PART,
    UNPICKLE_BACKEND,
    collects_parts,
    keeps_metadata_whole,
    patch,
    unpatched,
)
from offload.hooks.delivery import Delivery, current_delivery, running
from offload.hooks.message import HELD, MALFORMED, as_wire, task_holder, wire_form
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
    state_ttl,
)
from offload.hooks.requests import readable
from offload.hooks.result_meta import ResultMeta
from offload.hooks.result_refs import Encoded, options_of
from offload.hooks.runtime import Runtime, results_as_refs
from offload.ref import Ref, has_wire_form, looks_like_ref, wire_text
from offload.settings import TaskOptions

__all__ = ("hook_backend", "install", "make_portable")

logger = logging.getLogger(__name__)

_HOOKED = "_offload_hooked"
_REFERENCE = "offload"
"""Key in a result's stored metadata that has its reference.

Readers without offload ignore this key and see a failed task."""
_PICKLEABLE = "get_pickleable_exception"
_EXCEPTION_KEY = "offload"
"""Key of the reference in an exception stored as JSON."""
_EXCEPTION_ATTRIBUTE = "_offload_ref"
"""Attribute of the reference in a pickled exception."""
_INLINE_LIMIT = 1 << 16  # bytes up to which the exception is in the stored result itself
_NO_OPTIONS = TaskOptions()
_UNREADABLE = "offload stores this result; install or upgrade offload here and call Offload(app)"


def install() -> None:
    """Hook the backends of results when they are unpickled, and failures; once per process."""
    patch(base, UNPICKLE_BACKEND, _hooking)
    patch(trace, _PICKLEABLE, _keeping_shipped)


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
    exception_to_python = _hook_exceptions(runtime, backend)
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
            held_by = progress.progress_holder(_task_id(meta), suffix) if suffix else ""
            return failures.FailureMeta(
                meta, runtime, backend, stored, exception_to_python, held_by
            )
        if text is None and progress.is_progress(stored):
            return progress.progress_meta(runtime, meta, _task_id(meta))
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
        made: Any = None
        own = current_delivery()
        if own is None or own.task_id != task_id:
            own = running(task_id)
        if state != states.SUCCESS or own is None or not own.stores_result:
            made = _put_state(runtime, backend, task_id, result, state, traceback, request)
        if made is not None:
            result, traceback = made.encoded, made.traceback
        done = store_result(
            task_id, result, state, traceback=traceback, request=_as_arrived(request), **options
        )
        if made is not None or (own is not None and own.state is not None):
            _replace_state(runtime, own, made)
        return done.value if type(done) is Encoded else done

    def offload_part_return(request: Any, state: str, result: Any, **options: Any) -> Any:
        delivery = current_delivery()
        if delivery is not None and state == states.SUCCESS:
            keeper = runtime.part(PartKeeper)
            if keeper.part_returns(backend, request, delivery.since):
                delivery.parts_are_held = True
        if state in states.EXCEPTION_STATES and collects_parts(backend):
            result = _part_failure(runtime, backend, request, state, result)
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
        found = _stored_ref(runtime, backend, task_id)
        done = forget(task_id)
        if found is not None:
            release(runtime, [found[0]], found[1])
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


def _task_id(meta: Mapping[str, Any]) -> str:
    return str(meta.get("task_id"))


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


def _stored_ref(runtime: Runtime, backend: Any, task_id: str) -> tuple[Ref[Any], str] | None:
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


# -- failures and progress


class _Made(NamedTuple):
    """Replacement of a large failure or of large progress in the result backend.

    *held* is its reference and holder if another state will replace it; *former* is that of the
    state that it replaces itself, if no delivery knows it.
    """

    encoded: Encoded
    traceback: Any
    held: tuple[Ref[Any], str] | None
    former: tuple[Ref[Any], str] | None = None


def _put_state(
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
    found = _stored_ref(runtime, backend, task_id)
    return found if found is not None and found[1].startswith("progress:") else None


def _replace_state(runtime: Runtime, delivery: Delivery | None, made: _Made | None) -> None:
    """Release the state that was replaced, and remember the one that replaced it."""
    former = None if made is None else made.former
    if delivery is not None:
        former = delivery.state or former
        delivery.state = None if made is None else made.held
    if former is not None:
        release(runtime, [former[0]], former[1])


def _part_failure(runtime: Runtime, backend: Any, request: Any, state: str, result: Any) -> Any:
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


# -- exceptions of shipped classes


def _keeping_shipped(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_pickleable_exception(exc: Any) -> Any:
        delivery = current_delivery()
        if delivery is not None and _is_shipped(delivery.runtime, exc):
            return exc
        return original(exc)

    return get_pickleable_exception


def make_portable(runtime: Runtime, outcome: Any) -> None:
    """Replace a failed task's exception by one that plain pickle carries to the worker's main
    process, which loads no code.
    """
    if isinstance(outcome, ExceptionInfo) and _is_shipped(runtime, outcome.exception):
        outcome.exception = _as_celery(outcome.exception)


def _hook_exceptions(runtime: Runtime, backend: Any) -> Callable[[Any], Any]:
    """Hook *backend* to store and read exceptions of shipped classes, and to read large ones.

    Returns what makes an exception of what is stored.
    """
    prepare: Callable[..., Any] = backend.prepare_exception
    to_python: Callable[..., Any] = backend.exception_to_python

    def offload_prepare_exception(exc: Any, serializer: Any = None) -> Any:
        if serializer is not None or not _is_shipped(runtime, exc):
            return prepare(exc, serializer)
        made = _as_celery(exc)
        # A copy, so that no attributes are set on the user's exception.
        prepared = prepare(copy.copy(made) if made is exc else made)
        wire = _store_exception(runtime, exc)
        if wire is not None:
            if isinstance(prepared, dict):
                prepared[_EXCEPTION_KEY] = wire
            else:
                setattr(prepared, _EXCEPTION_ATTRIBUTE, wire)
        return prepared

    def offload_exception_to_python(exc: Any) -> Any:
        if failures.is_stand_in(exc):
            return failures.exception_of(runtime, backend, exc, offload_exception_to_python)
        given = exc if isinstance(exc, dict) else getattr(exc, "__dict__", {})
        wire = given.get(_EXCEPTION_KEY if given is exc else _EXCEPTION_ATTRIBUTE)
        if isinstance(wire, str) and has_wire_form(wire) and _may_load(runtime):
            try:
                found = runtime.results_content.open(wire).get()
            except OffloadError as error:
                logger.info("an exception is read as Celery stores it: %s", error)
            else:
                if isinstance(found, BaseException):
                    return found
        return to_python(exc)

    backend.prepare_exception = offload_prepare_exception
    backend.exception_to_python = offload_exception_to_python
    return offload_exception_to_python


def _may_load(runtime: Runtime) -> bool:
    return runtime.settings.code != OFF


def _is_shipped(runtime: Runtime, exc: Any) -> bool:
    ships = runtime.settings.mode == "on" and _may_load(runtime)
    if not (ships and isinstance(exc, BaseException)):
        return False
    kind, classes = type(exc), runtime.classes
    return classes.ships_by_value(kind) and (classes.can_push or classes.must_ship(kind))


def _as_celery(exc: BaseException) -> BaseException:
    """Return Celery's replacement for an exception that plain pickle can't carry."""
    made: BaseException = unpatched(trace, _PICKLEABLE)(exc)
    return made


def _store_exception(runtime: Runtime, exc: BaseException) -> str | None:
    """Store *exc* and return its reference; None if that fails, as the task has failed anyway."""
    try:
        payload = _serialize_exception(runtime, exc)
        if payload.size <= _INLINE_LIMIT:
            return runtime.content.writer.inline_ref(payload).wire
        hold = Hold(result_ttl(runtime, _NO_OPTIONS))
        return runtime.content.writer.put_payload(payload, hold=hold).wire
    except Exception as error:
        logger.info("%s is stored as by Celery: %s", type(exc).__qualname__, error)
        return None


def _serialize_exception(runtime: Runtime, exc: BaseException) -> Any:
    try:
        return runtime.content.writer.serialize(exc, "json")
    except SerializationError:
        kind = type(exc)
        args = ensure_serializable(
            exc.args, lambda arg: runtime.content.writer.serialize(arg, "json")
        )
        return runtime.content.writer.serialize(kind.__new__(kind, *args), "json")
