"""User code that sees tasks being published: give it values, and send unchanged ones by reference.

A worker that publishes the next step of a chain, a callback, or a chord's body has its arguments as
references, and passes them on as references. A task's own ``apply_async``, functions in
``task_routes``, and receivers of Celery's publishing signals read arguments: where there are any,
references are resolved for them. `KnownRefs` remembers the values, and a running task's result. If
one of them is published unchanged, its reference is sent, and nothing is stored again.

`GroupDedup` sends a value that several messages of a group share by one reference, if no user code
can change it between them.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from celery import Celery, Task, signals
from celery.app.routes import MapRoute
from celery.canvas import group
from kombu.utils.functional import maybe_evaluate

from offload.content.digest_cache import is_immutable
from offload.digest import digest_of
from offload.errors import OffloadError
from offload.hooks.celery_internals import patch, registered_tasks
from offload.hooks.message import described
from offload.hooks.paths import contains, replace_refs
from offload.hooks.runtime import Runtime
from offload.ref import Ref

_GUARDED = "_offload_handover"
_IGNORE_ARGUMENTS = frozenset(
    {"celery", "kombu", "offload", "sentry_sdk", "opentelemetry", "ddtrace", "newrelic"}
)
"""Packages whose functions don't read arguments: Celery itself, and tracers, which use headers."""

_SCALARS = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes),
        *(datetime, date, time, timedelta, Decimal, UUID),
    }
)
_PASSIVE = frozenset(
    {"numpy", "pandas", "polars", "pyarrow", "scipy", "torch", "xarray", "geopandas", "PIL"}
)
"""Packages of values whose serialization runs their own code only, unless they hold objects."""
_EMBEDDED = ("link", "link_error", "chain", "chord")


class Resent(NamedTuple):
    """Why a message is sent again.

    Attributes:
        attempt: how many times it was sent again because of a store outage.
        waits: how many times it was sent again because an equal call was computing.
    """

    attempt: int
    waits: int


resending: ContextVar[Resent | None] = ContextVar("offload_resending", default=None)
"""Set if the message being published is sent again by offload. User code saw it when it was
published first, and isn't called again.
"""


# -- known references


class KnownRefs:
    """References by the values that they were resolved to, and those of a task's own result.

    Keeps the values alive.

    Args:
        in_task: whether a task runs. Elsewhere, a Ref that is bound to an app was passed by a user
            and stays a Ref; only references that came in a message are resolved.
    """

    def __init__(self, *, in_task: bool = True) -> None:
        self._in_task = in_task
        self._by_value: dict[int, tuple[Any, Ref[Any], _Snapshot]] = {}
        self._values: dict[int, tuple[Ref[Any], Ref[Any], Any]] = {}
        self._result: Any = None
        self._result_refs: dict[str, Ref[Any]] = {}
        self._result_shown: _Snapshot | None = None

    def __bool__(self) -> bool:
        return bool(self._by_value)

    def remember(self, value: Any, ref: Ref[Any]) -> None:
        """Remember that *ref* was resolved to *value*, if changes of the value can be detected."""
        snapshot = _Snapshot.of(value)
        if snapshot is not None:
            self._by_value[id(value)] = value, ref, snapshot

    def find(self, value: Any) -> Ref[Any] | None:
        """Return the reference that was resolved to this very object; None if it was changed."""
        found = self._by_value.get(id(value))
        if found is None or not found[2].is_current():
            return None
        return found[1]

    def is_container_of_any(self, value: Any) -> bool:
        """Return whether *value* is a container that holds one of the objects."""
        seen = set()
        waiting = [value]
        while waiting:
            each = waiting.pop()
            if not isinstance(each, (list, tuple, dict)) or id(each) in seen:
                continue
            seen.add(id(each))
            items = list(each.values() if isinstance(each, dict) else each)
            if not self._by_value.keys().isdisjoint(map(id, items)):
                return True
            if not set(map(type, items)) <= _SCALARS:
                waiting += items
        return False

    def resolve(self, runtime: Runtime, value: Any, *, remember: bool = True) -> Any:
        """Replace each Ref in *value* by its value; *remember* the values, to be published."""
        refs: dict[int, Ref[Any]] = {}
        replace_refs(value, lambda ref: refs.setdefault(id(ref), ref))
        refs = {key: ref for key, ref in refs.items() if self._in_task or ref.resolve is None}
        to_read: list[tuple[Ref[Any], Ref[Any]]] = []
        for key, ref in refs.items():
            if key in self._values:
                continue
            own = ref if ref.is_local else runtime.content.opened(ref)
            if ref.is_local:
                self._values[key] = ref, own, ref.get()
            elif own.late is not None:
                self._values[key] = ref, own, own  # it isn't resolved here
            else:
                to_read.append((ref, own))
        values = runtime.content.reader.get_all([own for _, own in to_read])
        for (ref, own), found in zip(to_read, values, strict=True):
            self._values[id(ref)] = ref, own, found
        for _, ref, found in map(self._values.__getitem__, refs if remember else ()):
            if id(found) not in self._by_value and not ref.is_local and ref.late is None:
                self.remember(found, ref)
        return replace_refs(value, lambda ref: self._values[id(ref)][2] if id(ref) in refs else ref)

    def resolve_call(
        self, runtime: Runtime, task: str, args: Any, kwargs: Any, *, remember: bool = True
    ) -> tuple[Any, Any]:
        """Resolve the arguments of a call, except those that *task* takes as Refs."""
        if not contains((args, kwargs), (Ref,)):
            return args, kwargs
        facts = runtime.tasks[task]
        found = [
            value if facts.keeps(i, value) else self.resolve(runtime, value, remember=remember)
            for i, value in enumerate(args or ())
        ]
        return tuple(found) if isinstance(args, tuple) else found, {
            key: value
            if facts.keeps(key, value)
            else self.resolve(runtime, value, remember=remember)
            for key, value in (kwargs or {}).items()
        }

    def resolve_options(self, runtime: Runtime, options: dict[str, Any]) -> dict[str, Any]:
        """Resolve the references in signatures among the options of a call."""
        return {
            key: self.resolve(runtime, value) if key in _EMBEDDED else value
            for key, value in options.items()
        }

    # -- the task's own result

    def keep_result(self, result: Any, refs: Mapping[str, Ref[Any]]) -> None:
        """Remember the references, by Celery serializer, that stand for the task's result."""
        self._result = result
        self._result_refs = dict(refs)
        self._result_shown = None

    def result_resolved(self, ref: Ref[Any], value: Any) -> None:
        """Let *ref*, which the task returned, stand for its value *value* from now on."""
        if self._result is ref:
            self._result = value

    def show_result(self) -> None:
        """Detect changes of the result from now on, because user code receives it."""
        if self._result_refs and self._result_shown is None:
            self._result_shown = _Snapshot.of(self._result)
            if self._result_shown is None and not isinstance(self._result, Ref):
                self._result_refs = {}

    def result_ref(self, value: Any, serializer: str) -> Ref[Any] | None:
        """Return the reference of *value* if it is the task's own result and is stored."""
        if self._result_shown is not None and not self._result_shown.is_current():
            self._result_refs = {}
        if self._result_refs and value is self._result:
            return self._result_refs.get(serializer)
        return None


class _Snapshot:
    """The items of nested containers, compared by identity, and digests of arrays."""

    def __init__(self) -> None:
        self._contents: list[tuple[Any, tuple[Any, ...]]] = []

    @classmethod
    def of(cls, value: Any) -> _Snapshot | None:
        """Take a snapshot of *value*; None if it holds objects that can change undetected."""
        made = cls()
        seen = set()
        waiting = [value]
        while waiting:
            each = waiting.pop()
            if type(each) in _SCALARS or id(each) in seen:
                continue
            seen.add(id(each))
            content = _content(each)
            if content is None:
                if not is_immutable(each):
                    return None
                continue
            if type(each) is not tuple:
                made._contents.append((each, content))
            if not set(map(type, content)) <= _SCALARS:
                waiting += content
        return made

    def is_current(self) -> bool:
        """Return whether nothing has changed."""
        for each, before in self._contents:
            now = _content(each) or ()
            if len(now) != len(before) or not all(map(_is_same, now, before)):
                return False
        return True


def _content(value: Any) -> tuple[Any, ...] | None:
    """Return the parts of *value*; None for an object that isn't inspected."""
    kind = type(value)
    if kind is list or kind is tuple:
        return tuple(value)
    if kind is dict:
        return (*value.keys(), *value.values())
    if kind is bytearray:
        return (digest_of([value]),)
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        if value.dtype.hasobject or not (value.flags.c_contiguous or value.flags.f_contiguous):
            return None
        layout = (value.dtype.str, repr(value.dtype), value.shape, value.strides)
        return (*map(str, layout), digest_of([memoryview(value.ravel("A").view("u1"))]))
    return None


def _is_same(now: Any, before: Any) -> bool:
    return now is before or (type(now) is type(before) is str and now == before)


_known: ContextVar[KnownRefs | None] = ContextVar("offload_known_refs", default=None)


known_refs: Callable[[], KnownRefs | None] = _known.get
"""Return the references known in this context; None outside a task and publishing."""


@contextmanager
def using(known: KnownRefs | None = None) -> Iterator[KnownRefs]:
    """Use *known* in this block; by default the current references, or else none."""
    known = known if known is not None else _known.get()
    known = known if known is not None else KnownRefs(in_task=False)
    token = _known.set(known)
    try:
        yield known
    finally:
        _known.reset(token)


# -- detect user code


def is_user_code(function: Any) -> bool:
    """Return whether *function* may read the arguments of a published task."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    names = getattr(function, "__globals__", None)
    module = names.get("__name__") if names is not None else type(function).__module__
    return str(module).partition(".")[0] not in _IGNORE_ARGUMENTS


def has_listeners() -> bool:
    """Return whether user code receives Celery's publishing signals."""
    for signal in (signals.before_task_publish, signals.after_task_publish, signals.task_sent):
        for _, receiver in list(signal.receivers or ()):
            if isinstance(receiver, weakref.ReferenceType):
                receiver = receiver()  # noqa: PLW2901
            if receiver is not None and is_user_code(receiver):
                return True
    return False


def _overrides(task: Any) -> bool:
    """Return whether *task* overrides a method that publishes it."""
    publish = task.apply_async
    return hasattr(publish, _GUARDED) or is_user_code(publish) or is_user_code(task.shadow_name)


def _has_user_routes(router: Any) -> bool:
    """Return whether a Celery router has the user's own functions or objects as routes."""
    return any(not isinstance(maybe_evaluate(route), MapRoute) for route in router.routes or ())


# -- give values


def guard_task(runtime: Runtime, task: Any) -> None:
    """Call a task's own ``apply_async`` or ``shadow_name`` with values."""
    if _overrides(task) and not hasattr(task.apply_async, _GUARDED):
        celerys = functools.partial(Task.apply_async, task)
        task.apply_async = _guarded(runtime, task.apply_async, celerys, task.name)


def guard_send_task(runtime: Runtime, app: Any) -> None:
    """Call an app's own ``send_task`` with values."""
    if not is_user_code(app.send_task):
        return
    send = app.send_task

    @functools.wraps(send)
    def send_task(name: str, *given: Any, **options: Any) -> Any:
        celerys = functools.partial(Celery.send_task, app, name)
        return _guarded(runtime, functools.partial(send, name), celerys, name)(*given, **options)

    app.send_task = send_task


def _guarded(
    runtime: Runtime, publish: Callable[..., Any], celerys: Callable[..., Any], task: str
) -> Callable[..., Any]:
    """Return *publish* with values in place of references; *celerys* is Celery's own function."""

    def guarded(args: Any = None, kwargs: Any = None, *given: Any, **options: Any) -> Any:
        if resending.get():
            return celerys(args, kwargs, *given, **options)
        with using() as known:
            with showing(task):
                args, kwargs = known.resolve_call(runtime, task, args, kwargs)
                options = known.resolve_options(runtime, options)
            return publish(args, kwargs, *given, **options)

    setattr(guarded, _GUARDED, True)
    return guarded


def guard_router(runtime: Runtime, router: Any) -> None:
    """Call functions in ``task_routes`` with values, which are dropped afterwards."""
    lookup = router.lookup_route

    def lookup_route(name: str, args: Any = None, kwargs: Any = None, *more: Any) -> Any:
        if resending.get():
            return None  # it goes to the queue it came from
        if _has_user_routes(router):
            with showing(name) as known:
                args, kwargs = known.resolve_call(runtime, name, args, kwargs, remember=False)
        return lookup(name, args, kwargs, *more)

    router.lookup_route = lookup_route


@contextmanager
def showing(task: str) -> Iterator[KnownRefs]:
    """Resolve references for user code in this block; errors name *task*."""
    try:
        with using() as known:
            known.show_result()
            yield known
    except OffloadError as exc:
        raise described(exc, task, None) from exc


# -- groups


class GroupDedup:
    """References of the objects in one group's messages. Keeps the objects alive.

    ``group([train.s(frame, n) for n in range(50)])()`` builds 50 messages one after another within
    one call. If an object is immutable, or if no user code runs between the messages, it is the
    same in all of them, and they share one reference.

    Args:
        undisturbed: whether no user code runs that might change the objects.
    """

    def __init__(self, *, undisturbed: bool) -> None:
        self._undisturbed = undisturbed
        self._refs: dict[tuple[int, str], tuple[Any, Ref[Any]]] = {}

    def find(self, value: object, serializer: str) -> Ref[Any] | None:
        """Return the reference of this very object for Celery's *serializer*."""
        found = self._refs.get((id(value), serializer))
        return found[1] if found is not None else None

    def remember(self, value: object, serializer: str, ref: Ref[Any]) -> None:
        """Remember *ref* for later messages, unless the object may change before them."""
        if is_immutable(value) or (self._undisturbed and _is_passive(value)):
            self._refs[id(value), serializer] = (value, ref)


group_dedup: ContextVar[GroupDedup | None] = ContextVar("offload_group_dedup", default=None)
"""The references of the group that this thread is publishing."""


def install() -> None:
    """Deduplicate the values of each group's messages; once per process.

    A group made from a generator runs user code between messages, so its objects are serialized
    each time.
    """
    patch(group, "apply_async", _deduplicating)


def _deduplicating(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = getattr(self.app, "_offload", None)
        dedup = None
        if runtime is not None and type(self.tasks) is list:
            dedup = GroupDedup(undisturbed=_is_undisturbed(runtime, self.tasks))
        token = group_dedup.set(dedup)
        try:
            return original(self, *args, **kwargs)
        finally:
            group_dedup.reset(token)

    return apply_async


def _is_undisturbed(runtime: Runtime, signatures: Iterable[Any]) -> bool:
    """Return whether no user code runs while *signatures* are published one after another."""
    app = runtime.app
    if (
        has_listeners()
        or is_user_code(app.send_task)
        or getattr(app.amqp, "is_custom", True)
        or _has_user_routes(app.amqp.router)
        or is_user_code(app.backend.on_task_call)
    ):
        return False
    tasks = registered_tasks(app)
    for name in _names(signatures):
        task = None if name is None else tasks.get(name)
        if name is None or (task is not None and _overrides(task)):
            return False
    return True


def _is_passive(value: object) -> bool:
    """Return whether no code of the user's runs while *value* is serialized."""
    seen = set()
    waiting = [value]
    while waiting:
        each = waiting.pop()
        kind = type(each)
        if kind in _SCALARS or id(each) in seen:
            continue
        seen.add(id(each))
        if kind in (list, tuple, dict):
            items = _content(each) or ()
            if not set(map(type, items)) <= _SCALARS:
                waiting += items
        elif _is_of_passive_package(kind):
            if _holds_user_objects(each):
                return False
            waiting.append(getattr(each, "attrs", None))
        elif kind is not bytearray:
            return False
    return True


def _holds_user_objects(value: Any) -> bool:
    """Return whether an array, a column, or a label of a value of a `_PASSIVE` package may be an
    object of a user's class.
    """
    return any(
        getattr(getattr(part, "dtype", None), "hasobject", False)
        and not all(map(_is_passive_scalar, set(map(type, getattr(part, "flat", part)))))
        for part in _parts(value)
    )


def _parts(value: Any) -> Iterator[Any]:
    """Yield what *value* has that may hold objects."""
    if hasattr(value, "iloc"):  # a DataFrame or Series
        dtypes = list(value.dtypes) if value.ndim > 1 else [value.dtype]
        objects = [
            at
            for at, dtype in enumerate(dtypes)
            if getattr(getattr(dtype, "subtype", dtype), "hasobject", False)
        ]
        if objects:
            yield (value.iloc[:, objects] if value.ndim > 1 else value).to_numpy()
        for dtype in {id(dtype): dtype for dtype in dtypes}.values():
            yield getattr(dtype, "categories", None)
        for axis in value.axes:
            yield from getattr(axis, "levels", (axis, getattr(axis, "categories", None)))
    elif hasattr(value, "variables"):  # a Dataset
        yield from value.variables.values()
    else:
        yield value
        yield getattr(value, "categories", None)


def _is_passive_scalar(kind: type) -> bool:
    return kind in _SCALARS or (_is_of_passive_package(kind) and not hasattr(kind, "__len__"))


def _is_of_passive_package(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _PASSIVE


def _names(signatures: Any) -> Iterator[str | None]:
    """Yield the names of all tasks in *signatures*, including those in groups, chains, and chords;
    None for signatures that a generator has yet to make, or of a user's own class.
    """
    if isinstance(signatures, dict):
        if type(signatures).__module__.partition(".")[0] not in ("builtins", "celery"):
            yield None
        yield str(signatures["task"])
        kwargs = signatures["kwargs"] or {}
        if str(signatures["task"]).startswith("celery."):
            for part in ("tasks", "header", "body"):
                yield from _names(kwargs.get(part))
    elif type(signatures) in (list, tuple):
        for each in signatures:
            yield from _names(each)
    elif signatures is not None:
        yield None
