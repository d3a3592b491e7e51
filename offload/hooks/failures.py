"""Large failures in the result backend: an exception and its traceback, stored by reference.

What Celery would write is serialized by the backend's own serializer, and these bytes are stored.
So a reader gets exactly what plain Celery delivers. A *stand-in* remains in the backend, in the
form in which Celery stores exceptions as data: the class, and the start of its arguments. Readers
without offload raise it.

If the store fails, the task's own error must not be lost: then only the stand-in is stored, and
says so. If a reader can't get the value, it raises the stand-in, too.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

from celery.utils.serialization import UnpickleableExceptionWrapper
from kombu.serialization import dumps, loads

from offload.content.holds import Hold
from offload.errors import FailureTruncated, OffloadError, StoreError, StoreUnavailable
from offload.hooks.result_refs import Encoded, ResultMeta
from offload.hooks.runtime import Runtime
from offload.ref import Ref, has_wire_form
from offload.serializers.choose import certainly_small
from offload.settings import TaskOptions
from offload.text import human_size, reason_of, short_repr

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_REF = "offload_failure"
"""Key of the reference in a stand-in. Its value has the traceback and, unless the stand-in has it,
the exception."""
_WHOLE = "offload_exception"
"""Key of the exception in a stand-in if it is small: only the traceback is large then."""
_REASON = "offload_truncated"
"""Key of the reason why there is no reference."""
_HELD = "offload_holder"
"""Key of the suffix of the holder's name, for a state that another one replaces."""

_SMALL = 700  # bytes up to which an exception stays in its stand-in
_ARGUMENTS = 600  # characters of the arguments in a stand-in, and of a traceback's start and end
_TRACEBACK = (300, 500)
_MOST_ARGUMENTS = 10
_NAME = 200
_REASON_LENGTH = 400
_ASCII = 12  # characters that JSON takes at most to write one


# -- write


def _never_raising(store: Callable[_P, _T | None]) -> Callable[_P, _T | None]:
    @functools.wraps(store)
    def call(*given: _P.args, **named: _P.kwargs) -> _T | None:
        try:
            return store(*given, **named)
        except Exception:
            logger.warning("task %s: its failure is stored by Celery", named["name"], exc_info=True)
            return None

    return call


@_never_raising
def put(
    runtime: Runtime,
    backend: Any,
    failure: Any,
    state: str,
    traceback: Any,
    *,
    name: str,
    options: TaskOptions,
    hold: Callable[[], Hold],
    suffix: str = "",
) -> tuple[Encoded, Any, Ref[Any] | None] | None:
    """Store a failure if it is large, and return what replaces it; None if it is stored as usual.

    Never raises: the task's own error must be reported.

    Args:
        failure: an exception, or data in its place (given to ``update_state``).
        name: the task's name.
        hold: returns the hold of the value.
        suffix: suffix of the holder's name; see `holder_suffix`.

    Returns:
        The stand-in, an excerpt of the traceback, and the reference; no reference if the store
        failed, and the rest of the failure is lost.
    """
    threshold = options.threshold or 0
    forged = _is_marked(failure)
    if threshold and not forged and _is_small(failure, traceback, threshold, backend.serializer):
        return None
    try:
        prepared = backend.encode_result(failure, state)
        data = _encode(backend, {"result": prepared, "traceback": traceback})
    except Exception:  # Celery's own attempt to store it tells why
        return None
    if not forged:
        if len(data) < threshold or not (options.enabled and options.results):
            return None
        if runtime.settings.mode == "observe":
            runtime.observer.observe(data, backend.serializer, threshold)
            return None
    # Store errors contain no values, and readers may not have this process's key.
    hides = _hides(runtime) and not isinstance(failure, StoreError)
    stand_in = _stand_in(prepared, hides=hides)
    if not hides and _fits(backend, prepared):
        stand_in[_WHOLE] = prepared
        data = _encode(backend, {"traceback": traceback})
    with runtime.counters.about(name, "failure"):
        runtime.counters.add(values_seen=1)
        ref = None
        try:
            payload = runtime.content.writer.serialize(data, "json")
            payload = replace(payload, type=str(stand_in["exc_type"]), salt=suffix)
            ref = runtime.content.writer.put_payload(payload, hold=hold())
        except Exception as error:
            settings = runtime.settings
            if isinstance(error, OffloadError):
                runtime.counters.failed(error)
            if (
                isinstance(error, StoreUnavailable)
                and settings.on_outage == "inline"
                and len(data) <= settings.inline_limit
                and not forged
            ):
                runtime.counters.add(outage_inline=1)
                return None
            runtime.counters.add(failures_truncated=1)
            reason = _describe(error)
            logger.warning(
                "%s of task %s is stored truncated: %s", stand_in["exc_type"], name, reason
            )
            stand_in[_REASON] = reason
        else:
            stand_in[_REF] = ref.wire
            if suffix:
                stand_in[_HELD] = suffix
    return Encoded(stand_in), _excerpt_traceback(runtime, traceback, ref), ref


def _is_small(failure: Any, traceback: Any, threshold: int, serializer: str) -> bool:
    """Return whether a failure certainly has less than *threshold* bytes."""
    content = failure
    if isinstance(failure, BaseException):
        content = [failure.args, getattr(failure, "__dict__", None)]
    limit = threshold - 1 - _NAME
    if certainly_small([content, traceback], limit, serializer):
        return True
    # A traceback may quote source that isn't ASCII.
    return (
        isinstance(traceback, str)
        and len(traceback) * _ASCII < limit
        and certainly_small(content, limit - len(traceback) * _ASCII, serializer)
    )


def _fits(backend: Any, prepared: Any) -> bool:
    """Return whether an exception is small enough to stay in its stand-in."""
    content = prepared
    if isinstance(prepared, BaseException):
        content = [prepared.args, prepared.__dict__]
    return (
        certainly_small(content, _SMALL * _ASCII, backend.serializer)
        and len(_encode(backend, prepared)) <= _SMALL
    )


def _encode(backend: Any, data: Any) -> bytes:
    _, _, payload = dumps(data, serializer=backend.serializer)
    return payload.encode() if isinstance(payload, str) else bytes(payload)


def _describe(error: Exception) -> str:
    """Return why a value couldn't be stored or read, without revealing it."""
    text = f"{type(error).__name__}: {error}"
    return (text if isinstance(error, OffloadError) else reason_of(error))[:_REASON_LENGTH]


def _stand_in(prepared: Any, *, hides: bool) -> dict[str, Any]:
    """Return the class of an exception, and the start of each argument, in Celery's form.

    Args:
        hides: whether to leave out the arguments, because values are encrypted.
    """
    kind, module = "Exception", "builtins"
    args: Any = ()
    if isinstance(prepared, UnpickleableExceptionWrapper):
        kind, module, args = prepared.exc_cls_name, prepared.exc_module, prepared.exc_args
    elif isinstance(prepared, BaseException):
        kind, module, args = type(prepared).__qualname__, type(prepared).__module__, prepared.args
    elif isinstance(prepared, Mapping):
        kind, module = prepared.get("exc_type", kind), prepared.get("exc_module", module)
        args = prepared.get("exc_message", ())
    args = args if isinstance(args, (list, tuple)) else (args,)
    most = max(_ARGUMENTS // (len(args) or 1), _ARGUMENTS // _MOST_ARGUMENTS)
    return {
        "exc_type": str(kind)[:_NAME],
        "exc_message": [_short(each, most, hides=hides) for each in args[:_MOST_ARGUMENTS]],
        "exc_module": str(module)[:_NAME],
    }


def _short(value: Any, most: int, *, hides: bool) -> Any:
    if isinstance(value, bytes):  # some exceptions accept only text
        return b"" if hides else value[: most // 4]
    if hides:
        return f"<{type(value).__name__}, truncated by offload>"
    if certainly_small(value, most, "json"):
        return value
    if isinstance(value, str):
        if len(_written(value[:most])) <= most and len(value) <= most:
            return value
        return f"{_start(value, most)}… [truncated by offload: {human_size(len(value))}]"
    return f"{_start(short_repr(value), most)}… [truncated by offload]"


def _excerpt_traceback(runtime: Runtime, traceback: Any, ref: Ref[Any] | None) -> Any:
    first, last = _TRACEBACK
    if (
        not isinstance(traceback, str)
        or len(_written(traceback[: first + last + 1])) <= first + last
    ):
        return traceback
    start, end = _start(traceback, first), _start(traceback[::-1], last)[::-1]
    where = "stored by offload" if ref is not None else "truncated by offload"
    if _hides(runtime):
        return f"[{human_size(len(traceback))} {where}]"
    omitted = human_size(len(traceback) - len(start) - len(end))
    return f"{start}\n… [{omitted} {where}] …\n{end}"


def _hides(runtime: Runtime) -> bool:
    """Return whether values must not appear outside the store, because it is encrypted."""
    return bool(getattr(runtime.settings, "encryption_keys", None))


def _start(text: str, most: int) -> str:
    """Return the start of *text* that every serializer writes in about *most* bytes."""
    start = text[:most]
    return start if len(_written(start)) <= most * 1.5 else text[: most // _ASCII]


def _written(text: str) -> str:
    return json.dumps(text)[1:-1]


# -- read


def is_stand_in(raw: Any) -> bool:
    """Return whether *raw*, an exception as it is stored, is a stand-in."""
    return _is_marked(raw) and (
        isinstance(raw.get(_REASON), str)
        or (isinstance(raw.get(_REF), str) and has_wire_form(raw[_REF]))
    )


def _is_marked(raw: Any) -> bool:
    return type(raw) is dict and (_REF in raw or _REASON in raw)


def holder_suffix(raw: Mapping[str, Any]) -> str:
    """Return the suffix of the holder of a stand-in's value; empty if it has none."""
    suffix = raw.get(_HELD)
    return suffix if isinstance(suffix, str) and suffix.isalnum() else ""


def exception_of(runtime: Runtime, backend: Any, raw: dict[str, Any], to_python: Any) -> Any:
    """Return the exception of the stand-in *raw*; fetch it unless it is there.

    Args:
        to_python: converts what Celery would store to an exception.

    Raises: what Celery raises for a failure that it can't decode.
    """
    return _Failure(runtime, backend, raw, to_python).exception()


class _Failure:
    """A stored failure, fetched at first use."""

    def __init__(
        self, runtime: Runtime, backend: Any, raw: dict[str, Any], to_python: Callable[[Any], Any]
    ) -> None:
        self._runtime = runtime
        self._backend = backend
        self._raw = raw
        self._to_python = to_python
        self._fetched: Mapping[str, Any] | None = None
        self._error: OffloadError | None = None

    @property
    def wire(self) -> str:
        """The wire text of the reference; "" if there is none."""
        wire = self._raw.get(_REF)
        return wire if isinstance(wire, str) else ""

    def exception(self) -> Any:
        raw = self._raw
        if _WHOLE in raw:
            return self._to_python(raw[_WHOLE])
        content, reason = self._fetch(), raw.get(_REASON)
        if content is not None:
            return self._to_python(content.get("result"))
        made = self._to_python(
            {key: raw[key] for key in ("exc_type", "exc_message", "exc_module") if key in raw}
        )
        why = f"it couldn't be stored: {reason}" if reason else "it can't be read"
        if self._error is not None:
            why += f": {_describe(self._error)}"
        made.__cause__ = FailureTruncated(
            f"the {raw.get('exc_type')} that the task raised is truncated, as {why}",
            store=getattr(self._error, "store", None),
        )
        return made

    def traceback(self, excerpt: Any) -> Any:
        content = self._fetch()
        return excerpt if content is None else content.get("traceback")

    def _fetch(self) -> Mapping[str, Any] | None:
        """Return the stored value; None if there is none, or if it can't be read now."""
        if self._fetched is None and self._error is None and _REF in self._raw:
            try:
                data = self._runtime.results_content.open(self.wire).get()
            except OffloadError as error:
                logger.warning("a failure is read truncated: %s", error)
                self._error = error
                return None
            backend = self._backend
            found = loads(
                data if isinstance(data, bytes) else b"",
                content_type=backend.content_type,
                content_encoding=backend.content_encoding,
                accept=backend.accept,
            )
            self._fetched = found if isinstance(found, dict) else {}
        return self._fetched


class FailureMeta(ResultMeta):
    """A failed task's metadata whose exception and traceback are fetched when one is accessed."""

    def __init__(
        self,
        meta: dict[str, Any],
        runtime: Runtime,
        backend: Any,
        raw: dict[str, Any],
        to_python: Callable[[Any], Any],
        holder: str,
    ) -> None:
        self._failure = _Failure(runtime, backend, raw, to_python)
        super().__init__(meta, runtime, self._failure.wire, holder)
        self._left = {"result", "traceback"}

    def __getitem__(self, key: str) -> Any:
        if key in self._left:
            found = (
                self._failure.exception()
                if key == "result"
                else self._failure.traceback(dict.__getitem__(self, key))
            )
            self[key] = found
        return dict.__getitem__(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._left.discard(key)
        dict.__setitem__(self, key, value)
