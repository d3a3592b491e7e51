"""Execute tasks: resolve references before a task runs, and store its result afterwards.

Two things are hooked. The *tracer* of a task, which receives a message's arguments, is given values
in their place; the task's *function* is guarded, and refuses to start on references.

Celery builds tracers by `celery.app.trace.build_tracer`, in every pool and in eager mode. It is
replaced by a function that does the same, and also hooks the tracers of apps with offload. Other
packages replace it as well, so each worker and each pool process checks its tasks when it starts.
It hooks another package's tracer then; if one can't be hooked (a coroutine), the worker doesn't
start. The guard doesn't rely on the tracer: a function that is called with a message's arguments by
other means also receives values. So do tasks with a ``Strategy`` of their own, which take arguments
from requests.

(The signal ``task_prerun`` can't do this: Celery swallows its receivers' exceptions, so a task
would run on references; and receivers connected before offload's would see them.)
"""

from __future__ import annotations

import functools
import inspect
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from billiard.process import current_process
from celery import Task, signals, states
from celery.app import trace
from celery.bootsteps import StartStopStep
from celery.exceptions import Ignore, Reject, Retry

from offload.catalog import catalog
from offload.errors import BlobMissing, ConfigurationError, OffloadError, StoreUnavailable
from offload.hooks import (
    control,
    direct,
    requests,
    result_refs,
    results,
    shipped_exceptions,
    stored_states,
)
from offload.hooks.celery_internals import app_of_thread, patch
from offload.hooks.delivery import Delivery, current_delivery, running
from offload.hooks.memo import Call, Memos
from offload.hooks.message import EMBED, MALFORMED, described
from offload.hooks.options import saved_name
from offload.hooks.renewal import Renewer
from offload.hooks.result_refs import keep_result
from offload.hooks.runtime import Runtime
from offload.hooks.startup import add_to_banner, log_summary
from offload.hooks.usercode import Resent, guard_task, resending
from offload.memo import functions
from offload.memo.flight import Busy
from offload.memo.keys import GUARD
from offload.memo.results import Answer
from offload.metrics.otel import received
from offload.ref import Ref
from offload.settings import TaskOptions

_NAME = "build_tracer"
_TRACER = "_offload_tracer"
_STRATEGY = Task.Strategy
_MAIN = "MainProcess"
_HIDDEN_FILES = frozenset(
    {
        __file__,
        catalog.__file__,
        direct.__file__,
        functions.__file__,
        result_refs.__file__,
        results.__file__,
        shipped_exceptions.__file__,
        stored_states.__file__,
    }
)


def install() -> None:
    """Hook `build_tracer` and direct calls for apps with offload; once per process."""
    signals.worker_process_init.connect(
        _check_in_process, weak=False, dispatch_uid="offload-tracers"
    )
    signals.worker_shutdown.connect(_stopped, weak=False, dispatch_uid="offload-worker")
    before = trace.build_tracer
    patch(trace, _NAME, _guarding)
    consumer = sys.modules.get("celery.worker.consumer.consumer")
    if consumer is not None and trace.build_tracer is not before:
        setattr(consumer, _NAME, trace.build_tracer)  # it has imported the function by name
    patch(Task, "__call__", _guarding_direct)


def _guarding_direct(original: Callable[..., Any]) -> Callable[..., Any]:
    """Guard a task at its first direct call: outside workers, no tracer has been built for it."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        runtime = getattr(self.app, "_offload", None)
        if runtime is not None and not _is_guarded(self):
            guard(runtime, self)
            if type(self).__call__ is not Task.__call__:  # the task's own, which led here
                values, named = direct.resolve_direct(runtime, self.name, args, kwargs)
                return original(self, *values, **named)
        return original(self, *args, **kwargs)

    return call


def _guarding(original: Callable[..., Any]) -> Callable[..., Any]:
    def build_tracer(name: str, task: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = getattr(kwargs.get("app") or task.app, "_offload", None)
        if runtime is None:
            return original(name, task, *args, **kwargs)
        runtime.check_task(name)
        guard(runtime, task)
        requests.install()
        kwargs.setdefault("Info", _Info)
        return _tracer(runtime, task, original(name, task, *args, **kwargs))

    return build_tracer


class _Info(trace.TraceInfo):  # type: ignore[misc,name-defined,unused-ignore]
    """The outcome of a task. Frames of `_HIDDEN_FILES` are removed from the tracebacks of an error
    and its causes, as they would repeat arguments and results wherever local variables are shown.
    """

    __slots__ = ()

    def __init__(self, state: str, retval: Any = None) -> None:
        super().__init__(state, retval)
        if isinstance(retval, BaseException):
            for error in _chain(retval):
                error.__traceback__ = _without_ours(error.__traceback__)


def _chain(error: BaseException) -> Iterable[BaseException]:
    """Return an error and all its causes and contexts."""
    found = {id(error): error}
    waiting = [error]
    while waiting:
        each = waiting.pop()
        for other in (each.__cause__, each.__context__):
            if other is not None and id(other) not in found:
                found[id(other)] = other
                waiting.append(other)
    return found.values()


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    kept = []
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename not in _HIDDEN_FILES:
            kept.append(traceback)
        traceback = traceback.tb_next
    following = None
    for each in reversed(kept):
        each.tb_next = following
        following = each
    return following


def check_tracers(app: Any, pool: str = "a pool's process") -> None:
    """Hook tracers that other packages have built. Raises ConfigurationError if that fails."""
    runtime = app._offload  # noqa: SLF001 (set by offload)
    for name, task in list(app.tasks.items()):
        guard(runtime, task)
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


def _check_in_process(**_more: Any) -> None:
    """Check the tasks of a pool's process, which has built its own tracers."""
    app = app_of_thread()
    if getattr(app, "_offload", None) is not None:
        check_tracers(app)


def _stopped(sender: Any = None, **_more: Any) -> None:
    runtime = getattr(getattr(sender, "app", None), "_offload", None)
    if runtime is not None:
        runtime.stop_worker()


class CheckConfiguration(StartStopStep):
    """Startup step that stops a worker that couldn't read the values of its tasks."""

    label = "offload"

    def __init__(self, parent: Any, **_options: Any) -> None:
        runtime = parent.app._offload  # noqa: SLF001 (set by offload)
        runtime.check_start()
        import celery.worker.request  # noqa: F401 (import it, so that it can be hooked)

        control.install()  # again, if the app was created before Celery's worker was imported
        requests.install()
        requests.dispatch_stand_in(parent.app)
        for task in list(parent.app.tasks.values()):  # before Celery builds their tracers
            runtime.check_task(task.name)
            guard(runtime, task)
            runtime.part(Memos).prepare(task)
        runtime.start_worker(str(parent.hostname or ""))
        add_to_banner(runtime, parent)
        super().__init__(parent, **_options)

    def start(self, parent: Any) -> None:
        """Log one line; Celery has printed its banner just before."""
        log_summary(parent.app._offload)  # noqa: SLF001 (set by offload)


class CheckTracers(StartStopStep):
    """Startup step that stops a worker if a task could run without offload's tracer."""

    label = "offload tracers"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Check the tasks, whose tracers Celery has just built."""
        pool = getattr(parent, "pool", None)
        check_tracers(parent.app, f"pool {type(pool).__module__}.{type(pool).__qualname__}")


def _tracer(runtime: Runtime, task: Any, tracer: Callable[..., Any]) -> Callable[..., Any]:
    memos, renewer = runtime.part(Memos), runtime.part(Renewer)

    def traced(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        request = {} if request is None else request
        note = request.pop(EMBED, None)
        with Delivery(runtime, task, uuid) as delivery:
            with received(request):
                look_up = None if request.get("is_eager") else memos.look_up
                delivery.receive(args, kwargs, request, note, look_up)
            try:
                with renewer.running(delivery):
                    outcome = tracer(uuid, delivery.args, delivery.kwargs, request)
            except MALFORMED as exc:
                if request.get("is_eager") or current_process().name != _MAIN:
                    raise
                # In a pool without processes, this would end the worker. Celery catches
                # it, too, unless it has replaced `trace_task` by its faster variant.
                info = trace.TraceInfo(states.FAILURE, exc)
                return trace.trace_ok_t(trace.report_internal_error(task, exc), info, 0.0, None)
            if not request.get("is_eager"):
                shipped_exceptions.make_portable(runtime, outcome.retval)
            state = outcome.info.state if outcome.info is not None else states.SUCCESS
            delivery.finish(state, request.get("delivery_info"))
            return outcome

    setattr(traced, _TRACER, tracer)
    return traced


def guard(runtime: Runtime, task: Any) -> None:
    """Wrap the function that Celery will call: the task's own ``__call__``, else ``run``."""
    kind = type(task)
    if not _is_guarded(task):
        if kind.__call__ is Task.__call__:  # Celery's own, which it replaces in workers
            task.run = _guarded_run(runtime, task, task.run)
        else:
            kind.__call__ = _guarded_call(kind.__call__)
    guard_task(runtime, task)
    if trace.task_has_custom(task, "before_start") and not hasattr(task.before_start, GUARD):
        task.before_start = _guarded_start(runtime, task, task.before_start)


def _is_guarded(task: Any) -> bool:
    return hasattr(type(task).__call__, GUARD) or hasattr(task.run, GUARD)


def _guarded_run(runtime: Runtime, task: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return _call(runtime, task, run, args, kwargs)

    setattr(guarded, GUARD, True)
    return guarded


def _guarded_start(runtime: Runtime, task: Any, start: Callable[..., Any]) -> Callable[..., Any]:
    """Call a task's own ``before_start`` with values; don't call it if they can't be read."""

    @functools.wraps(start)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        delivery = current_delivery()
        if delivery is not None and delivery.task is task:
            if delivery.error is not None:
                _fail(runtime, task, delivery, delivery.error)
            if delivery.memo is not None and delivery.memo.is_busy:
                _wait(runtime, task, delivery, delivery.memo)
                args = (args[0], delivery.args, delivery.kwargs)
        return start(*args, **kwargs)

    setattr(guarded, GUARD, True)
    return guarded


def _guarded_call(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        runtime = getattr(self.app, "_offload", None)
        if runtime is None:
            return call(self, *args, **kwargs)
        return _call(runtime, self, functools.partial(call, self), args, kwargs)

    setattr(guarded, GUARD, True)
    return guarded


def _call(runtime: Runtime, task: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    __tracebackhide__ = True  # for Sentry and pytest
    request = vars(task.request)
    delivery = current_delivery() or running(request.get("id"))
    if delivery is not None and delivery.task is task and not delivery.started:
        return _execute(runtime, task, delivery, function, args, kwargs)
    if delivery is None and (note := request.pop(EMBED, None)) is not None:
        # A message that didn't pass through our tracer.
        with Delivery(runtime, task, request.get("id")) as made:
            made.receive(args, kwargs, request, note)
            request.update(args=made.args, kwargs=made.kwargs)
            return _execute(runtime, task, made, function, made.args, made.kwargs)
    if delivery is None and task.Strategy != _STRATEGY:
        args, kwargs = direct.resolve_in_objects(runtime, task, args, kwargs)
    # a plain call, perhaps with Refs
    args, kwargs = direct.resolve_direct(runtime, task.name, args, kwargs)
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
        _fail(runtime, task, delivery, delivery.error)
    template = None if delivery.facts is None else delivery.facts.options.save_as
    name = None if template is None else saved_name(template, task, runtime.clock())
    call = delivery.memo
    if call is None:
        result = function(*args, **kwargs)
        if isinstance(result, Ref) and result.is_local:
            result = result.get()
        keep_result(runtime, task, delivery, result, name)
    else:
        result = _execute_once(runtime, task, delivery, call, function, name)
    if isinstance(result, Ref) and task.request.is_eager:  # its caller is given this very object
        value = _resolved(runtime, task, result)
        delivery.known.result_resolved(result, value)
        return value
    return result


def _execute_once(
    runtime: Runtime,
    task: Any,
    delivery: Delivery,
    call: Call,
    function: Callable[..., Any],
    name: str | None,
) -> Any:
    """Return the result of a memo task: a remembered one, or compute it.

    Args:
        name: see `keep_result`.
    """
    __tracebackhide__ = True
    answer = call.found
    if isinstance(answer, Busy):
        _wait(runtime, task, delivery, call)
    elif isinstance(answer, Answer):
        by_ref = answer.ref.digest is not None and call.stores_result
        try:
            keep_result(runtime, task, delivery, answer.ref if by_ref else answer.value, name)
        except BlobMissing as exc:
            call.give_up(exc)
            _read_arguments(runtime, task, delivery)
        except StoreUnavailable as exc:
            _fail(runtime, task, delivery, exc)  # looked up again once the store is back
        else:
            delivery.known.result_resolved(answer.ref, answer.value)
            return answer.value
    begun = time.perf_counter()
    result = function(*delivery.args, **delivery.kwargs)
    seconds = time.perf_counter() - begun
    if isinstance(result, Ref) and result.is_local:
        result = result.get()
    ref = keep_result(runtime, task, delivery, result, name)
    if ref is not None:
        ref = delivery.known.result_ref(result, task.backend.serializer)
    call.remember(result, ref, seconds)
    return result


def _read_arguments(runtime: Runtime, task: Any, delivery: Delivery) -> None:
    """Read the arguments of a call that was to wait or was remembered, but must run after all."""
    delivery.read_arguments()
    task.request.update(args=delivery.args, kwargs=delivery.kwargs)
    if delivery.error is not None:
        _fail(runtime, task, delivery, delivery.error)


def _wait(runtime: Runtime, task: Any, delivery: Delivery, call: Call) -> None:
    """Requeue a message whose call waits for an equal one, and raise Ignore.

    If that fails, read the arguments: the call then runs now.
    """
    with runtime.counters.about(task.name):
        runtime.counters.add(memo_waits=1)
    runtime.part(Renewer).renew_if_due(delivery)
    countdown = call.countdown(delivery.waits)
    try:
        _send_again(task, delivery, countdown, Resent(delivery.attempt, delivery.waits + 1))
    except Exception as exc:
        call.give_up(exc)
        _read_arguments(runtime, task, delivery)
        return
    raise Ignore


def _resolved(runtime: Runtime, task: Any, result: Ref[Any]) -> Any:
    try:
        return runtime.get(result)
    except OffloadError as exc:
        raise described(exc, task.name, "result") from exc


def _fail(runtime: Runtime, task: Any, delivery: Delivery, error: Exception) -> None:
    """Send the task again if the store is unavailable, else raise *error*."""
    request = task.request
    policy = runtime.settings.retry
    if (
        not isinstance(error, StoreUnavailable)
        or request.is_eager
        or delivery.attempt >= policy.max_retries
        or (delivery.bound is None and delivery.memo is None)
    ):
        raise error
    countdown = policy.wait(delivery.attempt, random.random)
    runtime.counters.add(task_retries=1)
    try:
        signature = _send_again(
            task, delivery, countdown, Resent(delivery.attempt + 1, delivery.waits)
        )
    except Exception as exc:
        if task.acks_late:  # the broker still has the message, and delivers it again
            raise Reject(exc, requeue=True) from error
        raise error from exc
    raise Retry(exc=error, when=countdown, sig=signature)


def _send_again(task: Any, delivery: Delivery, countdown: float, resent: Resent) -> Any:
    """Send the message again, without counting it among the task's own retries."""
    request = task.request
    args, kwargs = delivery.bound or (delivery.args, delivery.kwargs)
    # As in Task.retry.
    signature = task.signature_from_request(
        request, args, kwargs, countdown=countdown, retries=request.retries
    )
    options = {} if delivery.options == TaskOptions() else {"offload": delivery.options}
    token = resending.set(resent)
    try:
        signature.apply_async(**options)
    finally:
        resending.reset(token)
    delivery.sent_again()
    return signature
