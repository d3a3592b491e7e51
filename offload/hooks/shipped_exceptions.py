"""Exceptions of shipped classes in the result backend.

If plain pickle can't serialize an exception, for example because its class was loaded from a store,
Celery replaces it with an instance of a parent class, or with a wrapper. These hooks store that
replacement, and with it a reference to the original. Readers that may load the class receive the
original; all others receive the replacement.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.app import trace
from celery.utils.serialization import ensure_serializable

from offload.classes.policy import OFF
from offload.content.holds import Hold
from offload.errors import OffloadError, SerializationError
from offload.hooks import failures
from offload.hooks.celery_internals import patch, unpatched
from offload.hooks.delivery import current_delivery
from offload.hooks.release import result_ttl
from offload.hooks.runtime import Runtime
from offload.ref import has_wire_form
from offload.settings import TaskOptions

logger = logging.getLogger(__name__)

_PICKLEABLE = "get_pickleable_exception"
_EXCEPTION_KEY = "offload"
"""Key of the reference in an exception stored as JSON."""
_EXCEPTION_ATTRIBUTE = "_offload_ref"
"""Attribute of the reference in a pickled exception."""
_INLINE_LIMIT = 1 << 16  # maximum bytes of an exception that is stored inside its reference
_NO_OPTIONS = TaskOptions()


def install() -> None:
    """Make Celery keep exceptions of shipped classes until a result backend stores them.

    Takes effect once per process.
    """
    patch(trace, _PICKLEABLE, _keeping_shipped)


def _keeping_shipped(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_pickleable_exception(exc: Any) -> Any:
        delivery = current_delivery()
        if delivery is not None and _is_shipped(delivery.runtime, exc):
            return exc
        return original(exc)

    return get_pickleable_exception


def make_portable(runtime: Runtime, outcome: Any) -> None:
    """Replace the exception of a failed task with one that plain pickle can serialize.

    The pool sends it to the worker's main process, which loads no code.
    """
    if isinstance(outcome, ExceptionInfo) and _is_shipped(runtime, outcome.exception):
        outcome.exception = _as_celery(outcome.exception)


def hook_exceptions(runtime: Runtime, backend: Any) -> Callable[[Any], Any]:
    """Hook *backend* to store and read exceptions of shipped classes, and to read large ones.

    Returns the function that converts stored data to an exception.
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
                logger.info("an exception is read in Celery's form: %s", error)
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
    """Return Celery's replacement for an exception that plain pickle can't serialize."""
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
        logger.info("%s is stored in Celery's form: %s", type(exc).__qualname__, error)
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
