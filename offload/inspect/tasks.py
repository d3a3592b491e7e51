"""Describe a task from its result backend, without fetching values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import states
from celery.backends.base import DisabledBackend

from offload.errors import ConfigurationError, InvalidRef, OffloadError, StoreUnavailable
from offload.hooks.runtime import Runtime, results_as_refs
from offload.ref import Ref
from offload.text import human_size, short_repr

__all__ = ("describe_task",)

_UNKNOWN = (
    "the result backend doesn't know it: it is queued or running, its result expired or isn't "
    "stored, or there is no such task; the references in its message can't be looked up"
)
_FACTS = ("name", "date_done", "worker", "queue", "retries", "parent_id")


def describe_task(runtime: Runtime, task_id: str) -> dict[str, Any]:
    """Describe a task; ``result_ref`` is its result if that is a reference.

    Raises ConfigurationError without a result backend, StoreUnavailable if it doesn't answer.
    """
    with results_as_refs():
        meta = _meta(runtime, task_id)
        state = str(meta.get("status"))
        described: dict[str, Any] = {"task": task_id, "state": state}
        if state == states.PENDING:
            return {**described, "not_known": _UNKNOWN}
        facts = {name: _plain(meta[name]) for name in _FACTS if meta.get(name) is not None}
        described |= {**facts, **_arguments(meta)}
        try:
            result = meta.get("result")
        except InvalidRef as exc:
            return {**described, "result": f"refused: {exc}"}
    if isinstance(result, Ref) and not result.is_local:
        return {**described, "result_ref": result}
    if state == states.SUCCESS:
        return {**described, "result": f"in the result backend: {short_repr(result)}"}
    return {**described, "result": short_repr(result)}


def _meta(runtime: Runtime, task_id: str) -> Mapping[str, Any]:
    backend = runtime.app.backend
    if isinstance(backend, DisabledBackend):
        raise ConfigurationError(
            f"{task_id[:100]!r} is neither a digest nor a reference, and tasks can't be looked up: "
            "the app has no result backend (result_backend)"
        )
    try:
        meta: Mapping[str, Any] = backend.get_task_meta(task_id)
    except OffloadError:
        raise
    except Exception as exc:  # each backend has its own
        raise StoreUnavailable(
            f"result backend {backend.as_uri()} unavailable: {type(exc).__name__}: {exc}"
        ) from exc
    return meta


def _arguments(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the stored arguments that are references (``result_extended``)."""
    args, kwargs = meta.get("args"), meta.get("kwargs")
    named: list[tuple[str, Any]] = []
    if isinstance(args, (list, tuple)):
        named += [(f"args[{at}]", value) for at, value in enumerate(args)]
    if isinstance(kwargs, Mapping):
        named += [(str(key), value) for key, value in kwargs.items()]
    found = {
        name: f"{value.type} of {human_size(value.size)}, {value.digest or 'inside its reference'}"
        for name, value in named
        if isinstance(value, Ref)
    }
    return {"arguments": found} if found else {}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float)) else str(value)
