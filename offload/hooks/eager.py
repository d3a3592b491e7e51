"""Eager calls: pass references around Celery's serializer, which would turn them into data.

With ``task_always_eager``, `Task.apply_async` serializes a call's arguments and reads them again,
as if they were in a message. A message lists the paths of its references; for eager calls, this
module does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from celery.app.task import Task
from celery.canvas import Signature
from celery.utils import uuid

from offload.content.manifest import ALIGNMENT
from offload.content.memory import allocate
from offload.errors import OffloadError
from offload.hooks.celery_internals import patch
from offload.hooks.message import described
from offload.hooks.paths import contains, replace_each, replace_refs
from offload.hooks.runtime import Runtime
from offload.ref import Ref
from offload.serializers.choose import Registry

__all__ = ("install", "with_refs")

_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_FOREIGN = frozenset({"numpy", "pandas", "polars", "pyarrow"})

_calls: ContextVar[Mapping[str, dict[tuple[Any, ...], Ref[Any]]] | None] = ContextVar(
    "offload_eager_calls", default=None
)
"""References and their paths, by task id, of the eager calls that are being serialized."""


def install() -> None:
    """Hook eager calls of apps with offload; once per process."""
    patch(Task, "apply_async", _passing_refs)


def _passing_refs(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply_async(
        self: Any,
        args: Any = None,
        kwargs: Any = None,
        task_id: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        app = self.app
        runtime = getattr(app, "_offload", None)
        if runtime is None or _holds_scalars(args, kwargs) or not app.conf.task_always_eager:
            return original(self, args, kwargs, task_id, *more, **options)
        serializer = options.get("serializer") or self.serializer or app.conf.task_serializer
        root = {"args": args or (), "kwargs": kwargs or {}}
        root = replace_refs(root, lambda ref: ref.get() if ref.is_local else ref)
        found = dict(_find(runtime, self.name, root, serializer))
        if not found:
            return original(self, root["args"], root["kwargs"], task_id, *more, **options)
        root = replace_each(root, list(found), lambda _node, _path: None)
        task_id = task_id or uuid()
        token = _calls.set({**(_calls.get() or {}), task_id: found})
        try:
            return original(self, root["args"], root["kwargs"], task_id, *more, **options)
        finally:
            _calls.reset(token)

    return apply_async


def _holds_scalars(args: Any, kwargs: Any) -> bool:
    """Return whether the arguments are scalars, which any serializer carries, or are malformed."""
    if not isinstance(args or (), (list, tuple)) or not isinstance(kwargs or {}, dict):
        return True
    kinds = {*map(type, args or ()), *map(type, (kwargs or {}).values())}
    return kinds <= _SCALARS


def with_refs(
    task_id: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Put the references of an eager call back into its arguments."""
    found = (_calls.get() or {}).get(task_id)
    if not found:
        return args, kwargs
    root = {"args": args, "kwargs": kwargs}
    root = replace_each(root, list(found), lambda _node, path: found[tuple(path)])
    return root["args"], root["kwargs"]


def _find(
    runtime: Runtime, task: str, root: Mapping[str, Any], serializer: str
) -> Iterator[tuple[tuple[Any, ...], Ref[Any]]]:
    """Yield the references to pass for values that the serializer can't carry, with their paths."""
    for kind in ("args", "kwargs"):
        items = root[kind].items() if isinstance(root[kind], dict) else enumerate(root[kind])
        for key, value in items:
            yield from _refs(value, (kind, key), serializer)
            if type(value).__module__.partition(".")[0] in _FOREIGN:
                ref = _copy(runtime, task, str(key), value, serializer)
                if ref is not None:
                    yield (kind, key), ref


def _refs(
    value: Any, path: tuple[Any, ...], serializer: str
) -> Iterator[tuple[tuple[Any, ...], Ref[Any]]]:
    if isinstance(value, Ref):
        yield path, value
    elif contains(value, (Ref,)) and not (serializer == "pickle" and isinstance(value, Signature)):
        # Pickle takes signatures apart and rebuilds them, so no path into one stays valid; but a
        # Ref in it stays a Ref.
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _refs(item, (*path, key), serializer)


def _copy(
    runtime: Runtime, task: str, argument: str, value: Any, serializer: str
) -> Ref[Any] | None:
    """Return a reference to a copy of *value*, as for a worker; None if *serializer* copies it."""
    serializers = Registry(runtime.accepted)
    if serializers.carries(value, serializer):
        return None
    try:
        payload = serializers.encode(value, serializer)
    except OffloadError as exc:
        raise described(exc, task, argument) from exc
    buffers = []
    for buffer in payload.buffers:
        own = allocate(buffer.nbytes, ALIGNMENT)
        own[:] = buffer
        buffers.append(own)
    return Ref.local(serializers.decode(payload.serializer, payload.head, buffers))
