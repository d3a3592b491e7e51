"""Resolve references in calls without a message: eager calls, direct calls, and ``Strategy``.

With ``task_always_eager``, `Task.apply_async` serializes a call's arguments and reads them again,
as if they were in a message. Celery's serializer would turn references into data, so they bypass
it: this module keeps their paths, as a message does in other calls.

A direct call, ``task(ref)``, receives values in place of Refs. A task with its own ``Strategy``
takes arguments from requests and passes them in other objects, as celery-batches does; references
are found in these by pickling them.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from celery.app.task import Task
from celery.canvas import Signature
from celery.utils import uuid

from offload.content.manifest import ALIGNMENT
from offload.content.memory import allocate
from offload.content.store import ContentStore
from offload.errors import ConfigurationError, InvalidRef, OffloadError
from offload.hooks.celery_internals import patch
from offload.hooks.message import check_paths, cycle_error, described, no_path_error
from offload.hooks.paths import (
    contains,
    has_paths,
    has_sharing,
    label,
    local_values,
    replace_each,
    replace_refs,
)
from offload.hooks.runtime import Runtime
from offload.ref import LostValue, Ref, no_refs_within, wire_text
from offload.serializers.choose import Registry
from offload.text import reason_of

_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_TO_RESOLVE = (Ref, LostValue)
_BATCH = "request"

_calls: ContextVar[Mapping[str, dict[tuple[Any, ...], Ref[Any]]] | None] = ContextVar(
    "offload_eager_calls", default=None
)
"""References and their paths, by task id, of the eager calls that are being serialized."""


# -- eager calls


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
        root = local_values(root)
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
    """Return whether all arguments are scalars, which any serializer supports, or are malformed."""
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
    """Yield references for the values that the serializer doesn't support, with their paths."""
    for kind in ("args", "kwargs"):
        items = root[kind].items() if isinstance(root[kind], dict) else enumerate(root[kind])
        for key, value in items:
            yield from _refs(runtime, task, value, (kind, key), serializer)


def _refs(
    runtime: Runtime,
    task: str,
    value: Any,
    path: tuple[Any, ...],
    serializer: str,
    around: tuple[int, ...] = (),
) -> Iterator[tuple[tuple[Any, ...], Ref[Any]]]:
    if isinstance(value, Ref):
        yield path, value
        return

    def argument() -> str:
        return label(path, runtime.tasks[task].parameters)

    is_pickle = serializer == "pickle"
    if is_pickle and (
        isinstance(value, Signature) or (contains(value, (Ref, Signature)) and has_sharing(value))
    ):
        # No path into a signature stays valid, as pickle takes it apart; and one into a shared
        # container would split it. But a Ref in them stays a Ref.
        check_paths(task, argument(), value)
        return
    if has_paths(value) and contains(value, (Ref, Signature)):
        if id(value) in around:
            raise cycle_error(task, argument(), value)
        around = (*around, id(value))
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _refs(runtime, task, item, (*path, key), serializer, around)
    elif type(value) not in _SCALARS:
        if contains(value, (Ref,)):
            raise no_path_error(task, argument(), value)
        ref = _copy(runtime, task, argument(), value, serializer)
        if ref is not None:
            yield path, ref


def _copy(
    runtime: Runtime, task: str, argument: str, value: Any, serializer: str
) -> Ref[Any] | None:
    """Return a reference to a copy of *value*, as for a worker; None if *serializer* copies it."""
    serializers = Registry(runtime.accepted)
    try:
        with no_refs_within():
            if serializers.leaves_to_celery(value, serializer):
                return None
            payload = serializers.encode(value, serializer)
    except OffloadError as exc:
        raise described(exc, task, argument) from exc
    buffers = []
    for buffer in payload.buffers:
        own = allocate(buffer.nbytes, ALIGNMENT)
        own[:] = buffer
        buffers.append(own)
    return Ref.local(serializers.decode(payload.serializer, payload.head, buffers))


# -- direct calls


def resolve_direct(
    runtime: Runtime, task: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Resolve Refs in a call without a message: an eager or a direct call.

    Raises the error of a `LostValue` among the arguments. Raises errors that name the argument: why
    a value can't be read, and SerializationError for a Ref in a container that can't have one in a
    message, such as a set.
    """
    if not contains(list(args), _TO_RESOLVE) and not contains(dict(kwargs), _TO_RESOLVE):
        return args, kwargs
    _refuse_lost([args, kwargs])
    facts = runtime.tasks[task]

    def resolve(value: Any, kind: str, key: int | str) -> Any:
        argument = label((kind, key), facts.parameters)
        try:
            return resolve_argument(value, argument, key)
        except OffloadError as exc:
            if exc.task is not None:
                raise
            raise described(exc, task, argument) from exc

    def resolve_argument(value: Any, argument: str, key: int | str) -> Any:
        if not facts.keeps(key, value):
            check_paths(task, argument, value)
            return replace_refs(value, runtime.get)
        if isinstance(value, Ref):
            return value if value.is_local else runtime.pinned_ref(value)
        return replace_refs(value, lambda ref: ref if ref.is_local else runtime.content.opened(ref))

    return (
        [resolve(value, "args", i) for i, value in enumerate(args)],
        {key: resolve(value, "kwargs", key) for key, value in kwargs.items()},
    )


def _refuse_lost(value: Any) -> None:
    """Raise the error of the first `LostValue` in *value*, if there is one."""
    if isinstance(value, LostValue):
        raise value.error
    if contains(value, (LostValue,)):
        for item in value.values() if isinstance(value, dict) else value:
            _refuse_lost(item)


# -- tasks with a Strategy of their own


def resolve_in_objects(runtime: Runtime, task: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Replace references by values, however deep they are in the objects of a ``Strategy``.

    In a list of such objects, one whose value is lost is omitted; its task fails if it has an id.
    """
    if len(args) == 1 and isinstance(args[0], list) and not kwargs:
        items = []
        error = None
        for item in args[0]:
            try:
                items.append(_resolve_pickled(runtime, task, item))
            except OffloadError as exc:
                task_id = getattr(item, "id", None)
                if not isinstance(task_id, str):
                    raise
                task.backend.mark_as_failure(task_id, exc, request=None)
                error = exc
        if error is not None and not items:
            raise error
        return (items,), kwargs
    resolved: tuple[Any, Any] = _resolve_pickled(runtime, task, (tuple(args), dict(kwargs)))
    return resolved


def _resolve_pickled(runtime: Runtime, task: Any, value: Any) -> Any:
    file = io.BytesIO()
    pickler = _RefPickler(file, runtime.content)
    try:
        pickler.dump(value)
    except OffloadError:
        raise
    except Exception as exc:
        raise ConfigurationError(
            f"task {task.name!r} has its own Strategy, {task.Strategy!r}, and receives data that "
            f"can't be pickled, so offload can't find references in it: {reason_of(exc)}. Turn "
            "offload off for this task: offload=False",
            task=task.name,
        ) from None
    if not pickler.refs:
        return value
    try:
        with runtime.counters.about(task.name, _BATCH):
            values = [runtime.content.open(ref.wire).get() for ref in pickler.refs]
    except OffloadError as exc:
        raise described(exc, task.name, _BATCH) from exc
    return _RefUnpickler(file.getvalue(), values).load()


class _RefPickler(pickle.Pickler):
    """Pickles any object without the references in it, and collects them."""

    def __init__(self, file: io.BytesIO, content: ContentStore) -> None:
        super().__init__(file, protocol=5)
        self._content = content
        self.refs: list[Ref[Any]] = []

    def persistent_id(self, obj: Any) -> int | None:
        text = wire_text(obj)
        if not text:
            return None
        ref = Ref.unbound(text)
        if not isinstance(obj, Ref):
            try:
                self._content.open(text)
            except InvalidRef:  # data of that form
                return None
        self.refs.append(ref)
        return len(self.refs) - 1


class _RefUnpickler(pickle.Unpickler):
    """Unpickles what `_RefPickler` wrote, with values in place of the references."""

    def __init__(self, content: bytes, values: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(content))
        self._values = values

    def persistent_load(self, pid: int) -> Any:
        return self._values[pid]
