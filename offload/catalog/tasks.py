"""What the result backend knows of a task, its values not fetched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import states
from celery.backends.base import DisabledBackend

from offload.errors import ConfigurationError, InvalidRef, OffloadError, StoreUnavailable
from offload.hooks.results import results_as_refs
from offload.hooks.runtime import Runtime
from offload.ref import Ref
from offload.text import human_size, short_repr

__all__ = ("told_of_task",)

_UNKNOWN = (
    "the result backend has nothing of it: it waits in a queue or runs, its result has expired or "
    "was not to be kept, or there never was such a task; what its message refers to is not known"
)
_FACTS = ("name", "date_done", "worker", "queue", "retries", "parent_id")


def told_of_task(runtime: Runtime, task_id: str) -> dict[str, Any]:
    """Return what is known of a task; ``result_ref`` is its result where that is a reference.

    Raises ConfigurationError without a result backend, StoreUnavailable if it does not answer.
    """
    with results_as_refs():
        meta = _meta(runtime, task_id)
        state = str(meta.get("status"))
        told: dict[str, Any] = {"task": task_id, "state": state}
        if state == states.PENDING:
            return {**told, "not_known": _UNKNOWN}
        told.update({name: _plain(meta[name]) for name in _FACTS if meta.get(name) is not None})
        told.update(_arguments(meta))
        try:
            result = meta.get("result")
        except InvalidRef as exc:
            return {**told, "result": f"refused: {exc}"}
    if isinstance(result, Ref) and not result.is_local:
        return {**told, "result_ref": result}
    if state == states.SUCCESS:
        return {**told, "result": f"in the result backend: {short_repr(result)}"}
    return {**told, "result": short_repr(result)}


def _meta(runtime: Runtime, task_id: str) -> Mapping[str, Any]:
    backend = runtime.app.backend
    if isinstance(backend, DisabledBackend):
        raise ConfigurationError(
            f"{task_id[:100]!r} is no digest or reference, and of tasks nothing is known: the app "
            "has no result backend (result_backend)"
        )
    try:
        meta: Mapping[str, Any] = backend.get_task_meta(task_id)
    except OffloadError:
        raise
    except Exception as exc:  # each backend has its own
        raise StoreUnavailable(
            f"the result backend {backend.as_uri()} does not answer: {type(exc).__name__}: {exc}"
        ) from exc
    return meta


def _arguments(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored arguments that are references (``result_extended``)."""
    args, kwargs = meta.get("args"), meta.get("kwargs")
    named: list[tuple[str, Any]] = []
    if isinstance(args, (list, tuple)):
        named += [(f"args[{at}]", value) for at, value in enumerate(args)]
    if isinstance(kwargs, Mapping):
        named += [(str(key), value) for key, value in kwargs.items()]
    found = {
        name: f"{value.type} of {human_size(value.size)}, {value.digest or 'within its reference'}"
        for name, value in named
        if isinstance(value, Ref)
    }
    return {"arguments": found} if found else {}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float)) else str(value)
