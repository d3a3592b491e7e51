"""The executing side: references are resolved before a task runs, its result stored after.

Celery takes a task's function in `celery.app.trace.build_tracer`, in every pool and in
eager mode, and that is the one place where all tasks pass: custom bases, class-based,
shared, registered late, with autoretry. It is replaced by one that does the same with
the function guarded; for apps without offload it does nothing else. (``task_prerun``
cannot do this: what its receivers raise is swallowed, so a task would run on references;
and receivers connected before ours would see them.)
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import states
from celery.app import trace
from celery.backends.base import DisabledBackend
from celery.bootsteps import Step
from celery.exceptions import Reject, Retry
from celery.result import ResultBase
from kombu.utils.objects import cached_property

from offload.content.holds import Hold, holder
from offload.errors import OffloadError, SerializationError, StoreUnavailable
from offload.hooks import control, exceptions
from offload.hooks.celery_internals import CONTEXT, context_maker
from offload.hooks.delivery import (
    EMBED,
    Delivery,
    body_of,
    current_delivery,
    ignores_result,
    mark_refs,
    resolve_direct,
)
from offload.hooks.handover import guard_task
from offload.hooks.outgoing import described
from offload.hooks.paths import contains
from offload.hooks.publish import resending
from offload.hooks.release import task_holder
from offload.ref import Ref, looks_like_ref
from offload.serializers.small import certainly_small
from offload.settings import TaskOptions
from offload.tracing import received

if TYPE_CHECKING:
    from offload.hooks.app import Offload

__all__ = ("CheckConfiguration", "install")

_GUARD = "_offload_guard"
_ANY_SERIALIZER = ""
_PATCH = "_offload_original"
_NAME = "build_tracer"


class CheckConfiguration(Step):
    """Keeps a worker from starting where it could not get what tasks refer to."""

    label = "offload"

    def __init__(self, parent: Any, **_options: Any) -> None:
        parent.app._offload.check_start()  # noqa: SLF001 (ours)
        control.install()  # where the app was made before Celery's worker was imported
        super().__init__(parent)


def install() -> None:
    """Have `build_tracer` guard the tasks of apps with offload; once per process."""
    exceptions.install()
    original = trace.build_tracer
    if hasattr(original, _PATCH):
        return

    @functools.wraps(original)
    def build_tracer(name: str, task: Any, *args: Any, **kwargs: Any) -> Any:
        hook = getattr(kwargs.get("app") or task.app, "_offload", None)
        if hook is None:
            return original(name, task, *args, **kwargs)
        hook.check_task(name)
        _guard_task(hook, task)
        _guard_requests()
        return _tracer(hook, task, original(name, task, *args, **kwargs))

    setattr(build_tracer, _PATCH, original)
    setattr(trace, _NAME, build_tracer)
    consumer = sys.modules.get("celery.worker.consumer.consumer")
    if consumer is not None:  # it has imported the function by name
        setattr(consumer, _NAME, build_tracer)


def _guard_requests() -> None:
    """Have the worker's main process pass references on; once per process.

    Where it ends a task itself (killed, lost, revoked, expired) it calls errbacks, fails
    chords and sends the task again out of the message as it was decoded.
    """
    module = sys.modules.get("celery.worker.request")
    if module is None or hasattr(module.Request, _PATCH):
        return
    original = context_maker(module.Request)

    def context(self: Any) -> Any:
        made = original(self)
        if getattr(self.app, "_offload", None) is not None:
            mark_refs(vars(made))
        return made

    guarded = cached_property(context)
    guarded.__set_name__(module.Request, CONTEXT)
    setattr(module.Request, CONTEXT, guarded)
    setattr(module.Request, _PATCH, original)


def _tracer(hook: Offload, task: Any, tracer: Callable[..., Any]) -> Callable[..., Any]:
    def traced(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        request = {} if request is None else request
        note = request.pop(EMBED, None)
        with Delivery(hook, task, uuid) as delivery:
            with received(request):
                delivery.receive(args, kwargs, request, note)
            with hook.renewer.running(delivery):
                outcome = tracer(uuid, delivery.args, delivery.kwargs, request)
            if not request.get("is_eager"):
                exceptions.portable(hook, outcome.retval)
            state = outcome.info.state if outcome.info is not None else states.SUCCESS
            delivery.finish(state, request.get("delivery_info"))
            return outcome

    return traced


def _guard_task(hook: Offload, task: Any) -> None:
    """Wrap what Celery will call: a ``__call__`` of the task's own, else ``run``."""
    if trace.task_has_custom(task, "__call__"):
        kind = type(task)
        if not hasattr(kind.__call__, _GUARD):
            kind.__call__ = _guarded_call(kind.__call__)
    elif not hasattr(task.run, _GUARD):
        task.run = _guarded_run(hook, task, task.run)
    guard_task(hook, task)
    if trace.task_has_custom(task, "before_start") and not hasattr(task.before_start, _GUARD):
        task.before_start = _guarded_start(hook, task, task.before_start)


def _guarded_run(hook: Offload, task: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return _call(hook, task, run, args, kwargs)

    setattr(guarded, _GUARD, True)
    return guarded


def _guarded_start(hook: Offload, task: Any, start: Callable[..., Any]) -> Callable[..., Any]:
    """A task's own ``before_start`` gets values; where there are none it is not called."""

    @functools.wraps(start)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        delivery = current_delivery()
        if delivery is not None and delivery.task is task and delivery.error is not None:
            _give_up(hook, task, delivery, delivery.error)
        return start(*args, **kwargs)

    setattr(guarded, _GUARD, True)
    return guarded


def _guarded_call(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        hook = getattr(self.app, "_offload", None)
        if hook is None:
            return call(self, *args, **kwargs)
        return _call(hook, self, functools.partial(call, self), args, kwargs)

    setattr(guarded, _GUARD, True)
    return guarded


def _call(hook: Offload, task: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    delivery = current_delivery()
    if delivery is None or delivery.task is not task or delivery.started:
        args, kwargs = resolve_direct(hook, hook.tasks[task.name], args, kwargs)  # a plain call
        return function(*args, **kwargs)
    delivery.started = True
    if delivery.error is not None:
        _give_up(hook, task, delivery, delivery.error)
    result = function(*args, **kwargs)
    if isinstance(result, Ref) and result.is_local:
        result = result.get()
    _store_result(hook, task, delivery, result)
    if isinstance(result, Ref) and task.request.is_eager:  # its caller is given this very object
        value = _resolved(hook, task, result)
        delivery.result_resolved(result, value)
        return value
    return result


def _resolved(hook: Offload, task: Any, result: Ref[Any]) -> Any:
    try:
        return hook.get(result)
    except OffloadError as exc:
        hook.counters.failed(exc)
        raise described(exc, task.name, "result") from exc


def _give_up(hook: Offload, task: Any, delivery: Delivery, error: Exception) -> None:
    """Send the task again if only the store was away, else fail it with *error*."""
    request = task.request
    policy = hook.settings.retry
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
    hook.counters.add(task_retries=1)
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


def _store_result(hook: Offload, task: Any, delivery: Delivery, result: Any) -> None:
    options = delivery.options.over(hook.options(task.name)[0])
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
    native = task.backend.serializer if stored or request.chord else hook.app.conf.task_serializer
    with hook.counters.about(task.name, "result"):
        try:
            if is_read:
                _refuse_refs_within(result)
            if not (stored or passed_on):
                return
            hold = _result_hold(hook, options, delivery, stored=stored)
            ref = _result_ref(hook, options, result, native, hold)
        except OffloadError as exc:
            hook.counters.failed(exc)
            raise described(exc, task.name, "result") from exc
    if ref is not None:
        delivery.keep_result(result, {native: ref})
        if not stored and not request.chord:
            delivery.hold(ref)


def _result_hold(hook: Offload, options: TaskOptions, delivery: Delivery, *, stored: bool) -> Hold:
    """Return who needs the result, and how long: a chord's body if it is its part, and the
    message of the task itself where it only goes to callbacks, which hold it for themselves.
    """
    request = delivery.task.request
    ttl = hook.result_ttl(options)
    if stored:
        return Hold(ttl, holder("result", request.id))
    if request.chord:
        body = body_of(request)
        return Hold(ttl, task_holder(body) if body else holder("result", request.id))
    retention = hook.retention if options.retention is None else options.retention
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
    hook: Offload, options: Any, result: Any, native: str, hold: Hold
) -> Ref[Any] | None:
    """Return the reference by which *result* travels, None where it goes as it is."""
    if isinstance(result, Ref):
        ref = hook.content.opened(result)
        hook.content.keep(ref, hold)
        return ref
    if looks_like_ref(result):  # a user's data: it must not be read as a reference
        return hook.content.put_disguised(result, native=native, hold=hold)
    least = hook.looks_from(options)
    if least and certainly_small(result, least - 1, native):
        return None
    if not (options.enabled and options.results):
        return None
    hook.counters.add(values_seen=1)
    threshold = options.threshold
    if hook.settings.mode == "observe":
        hook.observer.value(result, native, threshold)
        return None
    content = hook.content
    remembered = content.remembered(result, native=native, hold=hold, threshold=threshold)
    if remembered is not None:
        return remembered
    payload = content.serialise(result, native)
    content.check_size(payload)
    if payload.size >= threshold:
        return content.put_or_inline(payload, hold=hold, value=result, native=native)
    if not payload.ships_code and content.serializers.carries(result, native):
        return None
    return content.within(payload)
