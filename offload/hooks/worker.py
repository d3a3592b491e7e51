"""The executing side: references are resolved before a task runs, its result stored after.

Two things are hooked. The *tracer* of a task, which takes a message's arguments, gets values
in their place; the task's *function* is guarded, and refuses to start on anything else.

Celery makes tracers by `celery.app.trace.build_tracer`, in every pool and in eager mode.
It is replaced by one that does the same and hooks what it made; for apps without offload
it does nothing else. Other packages replace it as well, so a worker looks at its tasks when
it starts, and each pool process too: a tracer that somebody else made is hooked there, and
one that can't be (a coroutine) keeps the worker from starting. The guard doesn't rely on it:
a function that is called with a message's arguments past our tracer gets values as well,
and so do tasks with a ``Strategy`` of their own, which take arguments from requests.

(``task_prerun`` can't do this: Celery swallows what its receivers raise, so a task would run
on references; and receivers connected before ours would see them.)
"""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from billiard.process import current_process
from celery import Task, signals, states
from celery._state import get_current_app
from celery.app import trace
from celery.backends.base import DisabledBackend
from celery.bootsteps import StartStopStep, Step
from celery.exceptions import Reject, Retry
from celery.result import ResultBase

from offload.content.holds import Hold, holder
from offload.content.store import ContentStore
from offload.errors import (
    ConfigurationError,
    InvalidRef,
    OffloadError,
    SerializationError,
    StoreUnavailable,
)
from offload.hooks import control, exceptions, requests
from offload.hooks.celery_internals import patch
from offload.hooks.chords import part_ttl
from offload.hooks.delivery import (
    Delivery,
    body_of,
    current_delivery,
    ignores_result,
    resolve_direct,
    running,
)
from offload.hooks.handover import guard_task
from offload.hooks.message import EMBED, MALFORMED, STAND_IN, described, own_name
from offload.hooks.paths import contains
from offload.hooks.publish import resending
from offload.hooks.renewal import Renewer
from offload.hooks.rows import result_ttl
from offload.hooks.runtime import Runtime, task_holder
from offload.ref import Ref, looks_like_ref, wire_text
from offload.serializers.choose import certainly_small
from offload.settings import TaskOptions
from offload.tracing import received

__all__ = ("CheckConfiguration", "CheckTracers", "install")

_GUARD = "_offload_guard"
_ANY_SERIALIZER = ""
_NAME = "build_tracer"
_TRACER = "_offload_tracer"
_STRATEGY = Task.Strategy
_BATCH = "request"
_MAIN = "MainProcess"


class CheckConfiguration(Step):
    """Keeps a worker from starting where it could not get what tasks refer to."""

    label = "offload"

    def __init__(self, parent: Any, **_options: Any) -> None:
        runtime = parent.app._offload  # noqa: SLF001 (ours)
        runtime.check_start()
        import celery.worker.request  # noqa: F401 (what is hooked there must be there)

        control.install()  # where the app was made before Celery's worker was imported
        requests.install()
        for task in list(parent.app.tasks.values()):  # before anybody makes tracers of them
            _guard_task(runtime, task)
        super().__init__(parent, **_options)


class CheckTracers(StartStopStep):
    """Keeps a worker from starting if a task could run past our tracer."""

    label = "offload tracers"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Check the tasks, for which Celery has just built tracers."""
        _dispatch_stand_in(parent)
        pool = getattr(parent, "pool", None)
        _check_tracers(parent.app, f"pool {type(pool).__module__}.{type(pool).__qualname__}")


def _dispatch_stand_in(consumer: Any) -> None:
    """Pass messages that name `STAND_IN` to the tasks they are for."""
    strategies = consumer.strategies
    own = strategies[STAND_IN]

    def handle(message: Any, *given: Any, **more: Any) -> Any:
        name = own_name(message.headers)
        if name is None:
            return own(message, *given, **more)
        message = copy.copy(message)  # a message that is requeued goes back as it came
        message.headers = {**message.headers, "task": name}
        strategy = strategies.get(name)
        if strategy is None:
            return consumer.on_unknown_task(None, message, KeyError(name))
        return strategy(message, *given, **more)

    strategies[STAND_IN] = handle


def _check_tracers(app: Any, pool: str = "a pool's process") -> None:
    runtime = app._offload  # noqa: SLF001 (ours)
    for name, task in list(app.tasks.items()):
        _guard_task(runtime, task)
        tracer = task.__trace__
        if tracer is None or hasattr(tracer, _TRACER):
            continue
        if inspect.iscoroutinefunction(tracer):
            raise ConfigurationError(
                f"task {name!r} runs by {tracer.__module__}.{tracer.__qualname__}, a coroutine "
                f"that {pool} uses in place of Celery's tracer: offload can't pass values to it. "
                "Use another pool, or remove offload",
                task=name,
            )
        task.__trace__ = _tracer(runtime, task, tracer)


def _look_in_process(**_more: Any) -> None:
    """Check the tasks in a pool's process, which has built its own tracers."""
    app = get_current_app()
    if getattr(app, "_offload", None) is not None:
        _check_tracers(app)


def install() -> None:
    """Have `build_tracer` guard the tasks of apps with offload; once per process."""
    exceptions.install()
    requests.install()
    signals.worker_process_init.connect(
        _look_in_process, weak=False, dispatch_uid="offload-tracers"
    )
    before = trace.build_tracer
    patch(trace, _NAME, _guarding)
    consumer = sys.modules.get("celery.worker.consumer.consumer")
    if consumer is not None and trace.build_tracer is not before:
        setattr(consumer, _NAME, trace.build_tracer)  # it has imported the function by name


def _guarding(original: Callable[..., Any]) -> Callable[..., Any]:
    def build_tracer(name: str, task: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = getattr(kwargs.get("app") or task.app, "_offload", None)
        if runtime is None:
            return original(name, task, *args, **kwargs)
        runtime.check_task(name)
        _guard_task(runtime, task)
        requests.install()
        kwargs.setdefault("Info", _Info)
        return _tracer(runtime, task, original(name, task, *args, **kwargs))

    return build_tracer


class _Info(trace.TraceInfo):  # type: ignore[misc,name-defined,unused-ignore]
    """What became of a task; of an error's traceback, our frames are left out.

    They would repeat a task's arguments wherever local variables are shown.
    """

    __slots__ = ()

    def __init__(self, state: str, retval: Any = None) -> None:
        super().__init__(state, retval)
        if isinstance(retval, BaseException):
            retval.__traceback__ = _without_ours(retval.__traceback__)


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    kept = []
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename != __file__:
            kept.append(traceback)
        traceback = traceback.tb_next
    following = None
    for each in reversed(kept):
        each.tb_next = following
        following = each
    return following


def _tracer(runtime: Runtime, task: Any, tracer: Callable[..., Any]) -> Callable[..., Any]:
    def traced(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        request = {} if request is None else request
        note = request.pop(EMBED, None)
        with Delivery(runtime, task, uuid) as delivery:
            with received(request):
                delivery.receive(args, kwargs, request, note)
            try:
                with runtime.part(Renewer).running(delivery):
                    outcome = tracer(uuid, delivery.args, delivery.kwargs, request)
            except MALFORMED as exc:
                if request.get("is_eager") or current_process().name != _MAIN:
                    raise
                # By a pool without processes, this would end the worker; Celery does the same
                # where it has not optimized it away (`celery.app.trace.trace_task`).
                info = trace.TraceInfo(states.FAILURE, exc)
                return trace.trace_ok_t(trace.report_internal_error(task, exc), info, 0.0, None)
            if not request.get("is_eager"):
                exceptions.portable(runtime, outcome.retval)
            state = outcome.info.state if outcome.info is not None else states.SUCCESS
            delivery.finish(state, request.get("delivery_info"))
            return outcome

    setattr(traced, _TRACER, tracer)
    return traced


def _guard_task(runtime: Runtime, task: Any) -> None:
    """Wrap what Celery will call: a ``__call__`` of the task's own, else ``run``."""
    if trace.task_has_custom(task, "__call__"):
        kind = type(task)
        if not hasattr(kind.__call__, _GUARD):
            kind.__call__ = _guarded_call(kind.__call__)
    elif not hasattr(task.run, _GUARD):
        task.run = _guarded_run(runtime, task, task.run)
    guard_task(runtime, task)
    if trace.task_has_custom(task, "before_start") and not hasattr(task.before_start, _GUARD):
        task.before_start = _guarded_start(runtime, task, task.before_start)


def _guarded_run(runtime: Runtime, task: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return _call(runtime, task, run, args, kwargs)

    setattr(guarded, _GUARD, True)
    return guarded


def _guarded_start(runtime: Runtime, task: Any, start: Callable[..., Any]) -> Callable[..., Any]:
    """A task's own ``before_start`` gets values; where there are none it is not called."""

    @functools.wraps(start)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        delivery = current_delivery()
        if delivery is not None and delivery.task is task and delivery.error is not None:
            _give_up(runtime, task, delivery, delivery.error)
        return start(*args, **kwargs)

    setattr(guarded, _GUARD, True)
    return guarded


def _guarded_call(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        runtime = getattr(self.app, "_offload", None)
        if runtime is None:
            return call(self, *args, **kwargs)
        return _call(runtime, self, functools.partial(call, self), args, kwargs)

    setattr(guarded, _GUARD, True)
    return guarded


def _call(runtime: Runtime, task: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    __tracebackhide__ = True  # for Sentry and pytest
    request = vars(task.request)
    delivery = current_delivery() or running(request.get("id"))
    if delivery is not None and delivery.task is task and not delivery.started:
        return _execute(runtime, task, delivery, function, args, kwargs)
    if delivery is None and (note := request.pop(EMBED, None)) is not None:
        # A message, but not by our tracer.
        with Delivery(runtime, task, request.get("id")) as made:
            made.receive(args, kwargs, request, note)
            request.update(args=made.args, kwargs=made.kwargs)
            return _execute(runtime, task, made, function, made.args, made.kwargs)
    if delivery is None and task.Strategy != _STRATEGY:
        args, kwargs = _opened(runtime, task, args, kwargs)
    args, kwargs = resolve_direct(runtime, runtime.tasks[task.name], args, kwargs)  # a plain call
    return function(*args, **kwargs)


def _execute(
    runtime: Runtime,
    task: Any,
    delivery: Delivery,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    __tracebackhide__ = True
    delivery.started = True
    if delivery.error is not None:
        _give_up(runtime, task, delivery, delivery.error)
    result = function(*args, **kwargs)
    if isinstance(result, Ref) and result.is_local:
        result = result.get()
    if not inspect.isawaitable(result):
        _store_result(runtime, task, delivery, result)
    if isinstance(result, Ref) and task.request.is_eager:  # its caller is given this very object
        value = _resolved(runtime, task, result)
        delivery.result_resolved(result, value)
        return value
    return result


def _resolved(runtime: Runtime, task: Any, result: Ref[Any]) -> Any:
    try:
        return runtime.get(result)
    except OffloadError as exc:
        raise described(exc, task.name, "result") from exc


class _Picked(pickle.Pickler):
    """Pickles anything, with the references in it left out."""

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


class _Placed(pickle.Unpickler):
    """Unpickles that, with values in place of the references."""

    def __init__(self, content: bytes, values: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(content))
        self._values = values

    def persistent_load(self, pid: int) -> Any:
        return self._values[pid]


def _opened(runtime: Runtime, task: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return arguments with values in place of references, however deep they are in objects.

    A task with a ``Strategy`` of its own takes arguments out of requests, and hands them
    over in objects that only it knows, as celery-batches does. Of a list of such objects,
    one whose value is lost is left out, and its task failed, if it has an id.
    """
    if len(args) == 1 and isinstance(args[0], list) and not kwargs:
        items = []
        error = None
        for item in args[0]:
            try:
                items.append(_open(runtime, task, item))
            except OffloadError as exc:
                task_id = getattr(item, "id", None)
                if not isinstance(task_id, str):
                    raise
                task.backend.mark_as_failure(task_id, exc, request=None)
                error = exc
        if error is not None and not items:
            raise error
        return (items,), kwargs
    opened: tuple[Any, Any] = _open(runtime, task, (tuple(args), dict(kwargs)))
    return opened


def _open(runtime: Runtime, task: Any, value: Any) -> Any:
    file = io.BytesIO()
    picked = _Picked(file, runtime.content)
    try:
        picked.dump(value)
    except OffloadError:
        raise
    except Exception as exc:
        raise ConfigurationError(
            f"task {task.name!r} has its own Strategy, {task.Strategy!r}, and receives data that "
            f"can't be pickled, so offload can't find references in it: {type(exc).__name__}: "
            f"{exc}. Turn offload off for this task: offload=False",
            task=task.name,
        ) from exc
    if not picked.refs:
        return value
    try:
        with runtime.counters.about(task.name, _BATCH):
            values = [runtime.content.open(ref.wire).get() for ref in picked.refs]
    except OffloadError as exc:
        raise described(exc, task.name, _BATCH) from exc
    return _Placed(file.getvalue(), values).load()


def _give_up(runtime: Runtime, task: Any, delivery: Delivery, error: Exception) -> None:
    """Send the task again if only the store was away, else fail it with *error*."""
    request = task.request
    policy = runtime.settings.retry
    if (
        not isinstance(error, StoreUnavailable)
        or request.is_eager
        or delivery.attempt >= policy.max_retries
        or delivery.bound is None
    ):
        raise error
    args, kwargs = delivery.bound
    countdown = policy.wait(delivery.attempt, random.random)
    # As Task.retry does it, but with the task's own count of retries left as it is.
    signature = task.signature_from_request(
        request, args, kwargs, countdown=countdown, retries=request.retries
    )
    runtime.counters.add(task_retries=1)
    token = resending.set(delivery.attempt + 1)
    options = {} if delivery.options == TaskOptions() else {"offload": delivery.options}
    try:
        signature.apply_async(**options)
    except Exception as exc:
        if task.acks_late:  # the broker has the message still, and gives it again
            raise Reject(exc, requeue=True) from error
        raise error from exc
    finally:
        resending.reset(token)
    delivery.sent_again()
    raise Retry(exc=error, when=countdown, sig=signature)


def _store_result(runtime: Runtime, task: Any, delivery: Delivery, result: Any) -> None:
    options = delivery.options.over(runtime.options(task.name)[0])
    if _needs_no_look(result, options.threshold):
        return
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
        return
    native = (
        task.backend.serializer if stored or request.chord else runtime.app.conf.task_serializer
    )
    with runtime.counters.about(task.name, "result"):
        try:
            if is_read:
                _refuse_refs_within(result)
            if not (stored or passed_on):
                return
            hold = _result_hold(runtime, options, delivery, stored=stored)
            ref = _result_ref(runtime, options, result, native, hold)
        except OffloadError as exc:
            runtime.counters.failed(exc)
            raise described(exc, task.name, "result") from exc
    if ref is not None:
        delivery.keep_result(result, {native: ref})
        if not stored and not request.chord:
            delivery.hold(ref)


def _result_hold(
    runtime: Runtime, options: TaskOptions, delivery: Delivery, *, stored: bool
) -> Hold:
    """Return who needs the result, and how long: a chord's body if it is its part, and the
    message of the task itself where it only goes to callbacks, which hold it for themselves.
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
    """Raise SerializationError for Refs inside a result: its reader could not tell them
    from data.
    """
    if not isinstance(result, Ref) and contains(result, (Ref,)):
        raise SerializationError(
            f"a result can be a Ref, but this {type(result).__name__} holds Refs within: return "
            "the values, or one Ref to all of them made by Offload.put"
        )


def _needs_no_look(result: Any, threshold: int | None) -> bool:
    """Return whether *result* surely goes as it is, by every serializer.

    Of most results this is all that is asked.
    """
    return (
        bool(threshold)
        and not looks_like_ref(result)
        and certainly_small(result, threshold - 1, _ANY_SERIALIZER)  # type: ignore[operator]
    )


def _result_ref(
    runtime: Runtime, options: Any, result: Any, native: str, hold: Hold
) -> Ref[Any] | None:
    """Return the reference by which *result* travels, None where it goes as it is."""
    if isinstance(result, Ref):
        ref = runtime.content.opened(result)
        runtime.content.holds.add([ref], hold)
        return ref
    if looks_like_ref(result):  # a user's data: it must not be read as a reference
        return runtime.content.writer.put_escaped(result, celery_serializer=native, hold=hold)
    least = runtime.looks_from(options)
    if least and certainly_small(result, least - 1, native):
        return None
    if not (options.enabled and options.results):
        return None
    runtime.counters.add(values_seen=1)
    threshold = options.threshold
    if runtime.settings.mode == "observe":
        runtime.observer.value(result, native, threshold)
        return None
    content = runtime.content
    remembered = content.writer.find_cached_ref(
        result, celery_serializer=native, hold=hold, threshold=threshold
    )
    if remembered is not None:
        return remembered
    payload = content.writer.serialize(result, native)
    content.writer.check_size(payload)
    if payload.size >= threshold:
        return content.writer.put_or_inline(
            payload, hold=hold, value=result, celery_serializer=native
        )
    if not payload.ships_code and content.serializers.carries(result, native):
        return None
    return content.writer.inline_ref(payload)
