"""Large progress (``update_state(meta=…)``) in the result backend, stored by reference.

Its place in the backend takes a small dict, which any reader can decode: those without offload see
in it what to do. A newer state replaces it, and releases its value.
"""

from __future__ import annotations

from typing import Any

from celery import states

from offload.content.holds import Hold, holder
from offload.errors import OffloadError
from offload.hooks.message import described, wire_form
from offload.hooks.release import UNIQUE, new_suffix, progress_holder, result_ttl, state_ttl
from offload.hooks.result_meta import ResultMeta
from offload.hooks.result_refs import Encoded, can_skip, result_ref
from offload.hooks.runtime import Runtime
from offload.ref import Ref, has_wire_form, looks_like_ref
from offload.settings import TaskOptions

__all__ = ("is_progress", "progress_meta", "put")

_REF, _HELD, _HINT = "offload_progress", "offload_holder", "offload"
_READ_IT = "install or upgrade offload here and call Offload(app)"


def put(
    runtime: Runtime,
    backend: Any,
    task_id: str,
    value: Any,
    state: str,
    *,
    name: str,
    options: TaskOptions,
) -> tuple[Encoded, Ref[Any], str] | None:
    """Store a large value of a state that isn't a failure; None if it is stored as usual.

    Returns what replaces it, its reference, and the holder of its value.

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
