"""References in place of large results, and of other things that the result backend stores.

The value of a reference is fetched when it is accessed. A chain's ``get()`` reads its parents only
to raise a failure, and a result set fetches the values of its parts together, once all of them
have arrived.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NoReturn

from celery import states
from celery.backends.base import DisabledBackend
from celery.result import AsyncResult, ResultBase, ResultSet

from offload.content.holds import Hold, holder
from offload.content.store import ContentStore
from offload.errors import BlobMissing, OffloadError, SerializationError
from offload.hooks.celery_internals import (
    RAISE_PARENT_ERROR,
    TAKE_META,
    known_meta,
    parents_of,
    patch,
)
from offload.hooks.delivery import Delivery, current_delivery, ignores_result, running
from offload.hooks.message import body_of, described, task_holder
from offload.hooks.paths import contains
from offload.hooks.release import part_ttl, result_ttl
from offload.hooks.runtime import Runtime, reading_as_refs
from offload.ref import Ref, looks_like_ref
from offload.serializers.base import Payload
from offload.serializers.choose import certainly_small
from offload.settings import TaskOptions

_ANY_SERIALIZER = ""
_LONGEST_ID = 255  # characters of a task's id in metadata


class Encoded:
    """A result in the form in which the backend stores it; `encode_result` passes it on."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def options_of(runtime: Runtime, task_id: str, request: Any) -> tuple[str, TaskOptions]:
    """Return the name of the task whose state is stored, and the options in force for it."""
    delivery = running(task_id) or current_delivery()
    if delivery is not None:
        name = delivery.task.name
        return name, delivery.options.over(runtime.options(name)[0])
    name = getattr(request, "task", None)
    name = name if isinstance(name, str) else ""
    return name, runtime.options(name)[0]


def can_skip(result: Any, threshold: int | None) -> bool:
    """Return whether *result* certainly isn't replaced, whatever the serializer.

    For most results, nothing else runs.
    """
    return (
        bool(threshold)
        and not looks_like_ref(result)
        and certainly_small(result, threshold - 1, _ANY_SERIALIZER)  # type: ignore[operator]
    )


def result_ref(
    runtime: Runtime,
    options: TaskOptions,
    result: Any,
    serializer: str,
    hold: Hold,
    salt: str = "",
) -> Ref[Any] | None:
    """Return the reference that replaces *result*; None if it isn't replaced.

    *salt* goes into a new payload.

    Raises: SerializationError, ValueTooLarge, StoreUnavailable, StoreError.
    """
    if isinstance(result, ResultBase):
        return None
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
    threshold = options.threshold or 0
    if runtime.settings.mode == "observe":
        runtime.observer.observe(result, serializer, threshold)
        return None
    writer = runtime.content.writer
    found = writer.prepare(
        result, celery_serializer=serializer, hold=hold, threshold=threshold, salt=salt
    )
    if not isinstance(found, Payload):
        return found
    return writer.put_or_inline(found, hold=hold, value=result, celery_serializer=serializer)


def keep_result(
    runtime: Runtime, task: Any, delivery: Delivery, result: Any, name: str | None
) -> Ref[Any] | None:
    """Store the result, if it is large, and save it as the next version of *name* in the catalog,
    if it isn't None; return its reference, if it is stored.

    An error fails the task: otherwise the object would be missing.
    """
    if inspect.isawaitable(result):
        return None
    ref = _put_result(runtime, task, delivery, result)
    if name is None:
        return ref
    is_stored = ref is not None and ref.digest is not None
    metadata = {"task": task.name, "task_id": str(task.request.id)[:_LONGEST_ID]}
    with runtime.counters.about(task.name, "result"):
        try:
            runtime.catalog.save(name, ref if is_stored else result, metadata=metadata)
        except OffloadError as exc:
            runtime.counters.failed(exc)
            raise described(exc, task.name, "result") from exc
    return ref


def _put_result(runtime: Runtime, task: Any, delivery: Delivery, result: Any) -> Ref[Any] | None:
    """Store the result of *task* right after its function has returned; return its reference, or
    None if it isn't stored.

    An error is then the task's own failure. *delivery* keeps the reference for callbacks and the
    result backend. Raises OffloadError.
    """
    options = delivery.options.over(runtime.options(task.name)[0])
    if can_skip(result, options.threshold):
        return None
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
        return None
    serializer = (
        task.backend.serializer if stored or request.chord else runtime.app.conf.task_serializer
    )
    with runtime.counters.about(task.name, "result"):
        try:
            if is_read:
                _refuse_refs_within(result)
            if not (stored or passed_on):
                return None
            hold = _result_hold(runtime, options, delivery, stored=stored)
            with delivery.reading_state() if stored and not request.is_eager else nullcontext():
                ref = result_ref(runtime, options, result, serializer, hold)
        except OffloadError as exc:
            runtime.counters.failed(exc)
            raise described(exc, task.name, "result") from exc
    if ref is not None:
        delivery.known.keep_result(result, {serializer: ref})
        if not stored and not request.chord:
            delivery.hold(ref)
    return ref


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
    """Raise SerializationError if a result contains Refs, or is a late one.

    Its reader couldn't distinguish them from data, or could read another object each time.
    """
    if isinstance(result, Ref) and result.late is not None:
        raise SerializationError(
            f"a result can't be {result!r}: return the reference of a version, by Catalog.ref"
        )
    if not isinstance(result, Ref) and contains(result, (Ref,)):
        raise SerializationError(
            f"a result can be a Ref, but this {type(result).__name__} has Refs inside: return "
            "the values, or one Ref to all of them made by Offload.put"
        )


_CHORD_UNLOCK = "celery.chord_unlock"
_USER_CALLBACKS = ("on_message", "on_interval")
"""The user's functions that a result set calls while it waits."""
_READS = ("get", "maybe_throw", "result")
"""Attributes of a result that return its value."""

_joining: ContextVar[bool] = ContextVar("offload_results_joining", default=False)
"""Whether a result set gathers its parts, whose values are fetched once all have arrived."""


@contextmanager
def _set_joining(value: bool) -> Iterator[None]:
    token = _joining.set(value)
    try:
        yield
    finally:
        _joining.reset(token)


def _wants_refs() -> bool:
    """Return whether a stored result is read as its Ref in this context."""
    delivery = current_delivery()
    return reading_as_refs.get() or (delivery is not None and delivery.task.name == _CHORD_UNLOCK)


class ResultMeta(dict):  # type: ignore[type-arg]
    """A result's metadata whose ``result`` is resolved when it is accessed.

    So reading a task's state, or anything else about it, downloads nothing. As with plain Celery,
    one result object returns the same value object every time.

    Attributes:
        wire: the wire text of the reference, unverified.
        holder: the holder of the value of a state that another one will replace; else empty.
    """

    def __init__(self, meta: dict[str, Any], runtime: Runtime, wire: str, holder: str = "") -> None:
        super().__init__(meta)
        self.wire = wire
        self.holder = holder
        self._runtime = runtime
        self._ref: Ref[Any] | None = None
        self._is_filled = False

    @property
    def ref(self) -> Ref[Any]:
        """The result's reference, opened once. Raises InvalidRef."""
        if self._ref is None:
            self._ref = self._runtime.results_content.open(self.wire)
        return self._ref

    def fill(self, value: Any) -> None:
        """Set the value of the reference."""
        self["result"] = value

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._is_filled = self._is_filled or key == "result"

    def __getitem__(self, key: str) -> Any:
        if key != "result" or self._is_filled:
            return super().__getitem__(key)
        if _joining.get():
            return self
        if _wants_refs():
            return self.ref
        try:
            self.fill(self.ref.get())
        except OffloadError as exc:
            self.fail(exc)
        return super().__getitem__(key)

    def fail(self, exc: OffloadError) -> NoReturn:
        """Raise *exc*, naming the task and, if the value is lost, a likely reason."""
        name = str(dict.get(self, "name") or dict.get(self, "task_id"))
        if exc.task is not None:
            raise exc
        if not isinstance(exc, BlobMissing):
            raise described(exc, name, "result") from exc
        new = type(exc)(
            f"{exc}. A result's value is kept for result_expires after it was stored, or until the "
            "result is forgotten or the backend is cleaned up",
            digest=exc.digest or self.ref.digest,
            store=exc.store,
        )
        raise described(new, name, "result") from exc

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()  # so that dict(meta) accesses each item

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 (this is dict.get)

    def items(self) -> Any:
        return self._whole().items()

    def values(self) -> Any:
        return self._whole().values()

    def copy(self) -> dict[str, Any]:
        return self._whole()

    def update(self, *given: Any, **more: Any) -> None:
        for key, value in dict(*given, **more).items():
            self[key] = value

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str, *default: Any) -> Any:
        if key in self:
            self[key]  # resolve it
        return super().pop(key, *default)

    def __reduce__(self) -> Any:
        return dict, (self._whole(),)

    def _whole(self) -> dict[str, Any]:
        """Return a plain dict with the result's value."""
        return {key: self[key] for key in self}

    def __copy__(self) -> ResultMeta:
        return self


def install() -> None:
    """Hook results to read no more than they need; once per process."""
    patch(AsyncResult, RAISE_PARENT_ERROR, _raise_parent_error)
    patch(AsyncResult, TAKE_META, _not_joining)
    for name in ("join", "join_native"):
        patch(ResultSet, name, _join_together)


def _raise_parent_error(_original: Callable[..., Any]) -> Callable[[Any], None]:
    def maybe_reraise_parent_error(self: Any) -> None:
        for node in reversed(parents_of(self)):
            _raise_error(node)

    return maybe_reraise_parent_error


def _raise_error(node: Any) -> None:
    """Raise the error of a failed result, or of the first failed one in a set.

    A chord's ``get()`` does this for all parts whenever one of them arrives. So parts that are
    known to have succeeded are skipped first, and no reference is opened.
    """
    if not isinstance(node, ResultSet):
        if node.state in states.PROPAGATE_STATES:
            node.maybe_throw()
        return
    for result in node.results:
        meta = known_meta(result)
        if meta is None or dict.__getitem__(meta, "status") != states.SUCCESS:
            _raise_error(result)


def _join_together(original: Callable[..., Any]) -> Callable[..., Any]:
    parameters = inspect.signature(original)

    def join(self: Any, *args: Any, **options: Any) -> Any:
        given = parameters.bind(self, *args, **options).arguments
        runtime = getattr(self.app, "_offload", None)
        # A callback takes one value at a time. A nested set is resolved with the outer one.
        if runtime is None or given.get("callback") or _joining.get() or _wants_refs():
            return original(self, *args, **options)
        if not all(map(_is_celerys, self.results)):
            return original(self, *args, **options)
        given.update(
            {name: _not_joining(given[name]) for name in _USER_CALLBACKS if given.get(name)}
        )
        with _set_joining(True):
            values = original(**given)
        _resolve_all(runtime.results_content, list(_unresolved(self, values)))
        return values

    return join


def _not_joining(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap *function*, which calls user code, so that results read in it have values."""

    def call(*args: Any, **options: Any) -> Any:
        if not _joining.get():
            return function(*args, **options)
        with _set_joining(False):
            return function(*args, **options)

    return call


def _is_celerys(result: Any) -> bool:
    """Return whether only Celery's own code reads the value of *result* in a join."""
    is_set = isinstance(result, ResultSet)
    own = (ResultSet, ("get", "join", "join_native")) if is_set else (AsyncResult, _READS)
    if any(getattr(type(result), name, None) is not getattr(own[0], name) for name in own[1]):
        return False
    return not is_set or all(map(_is_celerys, result.results))


def _unresolved(results: Any, values: list[Any]) -> Iterator[tuple[list[Any], int]]:
    """Yield the places in the items of a result set where metadata stands instead of a value."""
    for at, (result, value) in enumerate(zip(results.results, values, strict=True)):
        if isinstance(value, ResultMeta):
            yield values, at
        elif isinstance(result, ResultSet) and isinstance(value, list):
            yield from _unresolved(result, value)


def _resolve_all(content: ContentStore, places: Sequence[tuple[list[Any], int]]) -> None:
    """Fetch the values of *places* together, and put them there."""
    metas: list[ResultMeta] = [values[at] for values, at in places]
    refs = [meta.ref for meta in metas]
    # A set may also have results of another app.
    own = all(ref.resolve == content.reader.get for ref in refs)
    found = content.reader.get_all(refs) if own else map(Ref.get, refs)
    for (values, at), meta in zip(places, metas, strict=True):
        try:
            values[at] = next(found)
        except OffloadError as exc:
            meta.fail(exc)
        meta.fill(values[at])
