"""Memo tasks: return the result of an equal call instead of running the function.

A call is looked up after its references are verified and before they are read, so that a hit
downloads no argument. A hit passes through Celery's tracer as any task does: instead of its
function, `hooks.execute` returns what was found here.
"""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded
from celery.app.trace import task_has_custom
from celery.result import ResultBase

from offload.errors import ConfigurationError, OffloadError
from offload.hooks.delivery import Delivery
from offload.hooks.options import GUARD
from offload.hooks.paths import contains
from offload.hooks.release import result_ttl
from offload.hooks.runtime import Runtime
from offload.memo import functions
from offload.memo.flight import Busy, Computation
from offload.memo.keys import SCOPE, Function, NotRemembered
from offload.memo.records import forget_record, forget_records, record_name
from offload.memo.results import LEASE, Answer, Results, is_lasting
from offload.ref import Ref
from offload.settings import TaskOptions
from offload.settings.units import Duration

__all__ = ("Call", "Memos")

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE, _FACTOR = 0.2, 5.0, 1.5  # seconds until a message comes back
_LEAST_PAUSE = 0.05
_READERS = ("before_start", "on_success", "after_return")
"""Methods of a task that receive its arguments and its result."""
_CACHE = 10_000  # tasks whose functions are kept


@dataclass
class Call:
    """A call of a memo task that was looked up.

    Attributes:
        found: its result, its computation here, or that somebody else computes; None: it is
            computed without being remembered.
        finish: waits until the result is remembered.
        options: those in force.
        scope: of the call, by the name that its record has.
    """

    memos: Memos
    function: Function
    options: TaskOptions
    found: Answer | Computation | Busy | None
    scope: str = ""
    finish: Callable[[], None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether an equal call computes."""
        return isinstance(self.found, Busy)

    @property
    def answer(self) -> Answer | None:
        """The result of an earlier call."""
        return self.found if isinstance(self.found, Answer) else None

    @property
    def stores_result(self) -> bool:
        """Whether large results are stored by reference."""
        return bool(self.options.enabled and self.options.results)

    def countdown(self, waits: int) -> float:
        """Return the seconds after which a call that has waited *waits* times is looked up again:
        when its owner's lease expires, at the latest.
        """
        pause = min(_FIRST_PAUSE * _FACTOR ** min(waits, 50), _LONGEST_PAUSE)
        pause *= random.uniform(0.75, 1.25)  # noqa: S311 (no secret: spreads those who wait)
        left = self.found.left if isinstance(self.found, Busy) else 0.0
        return max(min(pause, left + _FIRST_PAUSE), _LEAST_PAUSE)

    def run(self, compute: Callable[[], Any], store: Callable[[Any], Ref[Any] | None]) -> Any:
        """Compute, store, and remember the result; the task's own errors are raised.

        Args:
            store: stores the result for those who wait for it, and returns its reference, if any.
        """
        begun = time.perf_counter()
        result = compute()
        seconds = time.perf_counter() - begun
        if isinstance(result, Ref) and result.is_local:
            result = result.get()
        known = store(result)
        if (
            isinstance(self.found, Computation)
            and is_lasting(result)
            and not isinstance(result, ResultBase)
        ):
            self.finish = self.memos.remember(self, self.found, result, known, seconds)
        return result

    def close(self) -> None:
        """Wait until the result is remembered; if it isn't, let others compute. Never raises."""
        if self.finish is not None:
            self.memos.finish(self.function.name, self.finish)
        if isinstance(self.found, Computation):
            self.memos.results.flights.abandon(self.found)

    def give_up(self, error: Exception) -> None:
        """Compute the call without remembering its result, because of *error*."""
        found, self.found = self.found, None
        self.memos.give_up(self.function.name, error, found)


class Memos:
    """The remembered results of an app's tasks and functions."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._functions: dict[str, tuple[Any, Function, bool]] = {}
        self.results = Results(lambda: runtime.content, runtime.counters)

    # -- for the hooks

    def look_up(self, delivery: Delivery) -> bool:
        """Look up the call of *delivery*, if its task is a memo task; set `Delivery.memo`.

        Returns whether its arguments needn't be read.
        """
        runtime, task = self._runtime, delivery.task
        options = self._options(task, delivery.options)
        if not options.memo or runtime.settings.mode != "on":
            return False
        with runtime.counters.about(task.name):
            try:
                function, reads = self._function(task)
                # Not `bound`: late references have been replaced, so their digests count.
                is_bound = delivery.bound is not None
                key = self._key(function, delivery.args, delivery.kwargs, refs=is_bound)
                scope = self._scope(options)
                name = record_name(task.name, scope, key)
                found = self.results.find(
                    name,
                    options.memo_lease or LEASE,
                    block=options.wait == "block",
                    read=reads or not (options.enabled and options.results),
                )
            except NotRemembered:
                return False
            except SoftTimeLimitExceeded:
                raise
            except Exception as exc:
                self.results.uncached(f"task {task.name!r}", exc)
                return False
        delivery.memo = Call(self, function, options, found, scope)
        return isinstance(found, Busy) or (isinstance(found, Answer) and not reads)

    def remember(
        self,
        call: Call,
        computation: Computation,
        result: Any,
        known: Ref[Any] | None,
        seconds: float,
    ) -> Callable[[], None] | None:
        """Remember the result of a computation; return a function that waits until it is.

        A failure is counted and logged.
        """
        memo, name = call.options.memo, call.function.name
        with self._runtime.counters.about(name):
            try:
                ttl = result_ttl(self._runtime, call.options) if memo is True else float(memo or 0)
                return self.results.remember(
                    computation,
                    result,
                    task=name,
                    scope=call.scope,
                    ttl=ttl,
                    seconds=seconds,
                    known=known,
                    serializer=call.function.context,
                )
            except SoftTimeLimitExceeded:
                raise
            except Exception as exc:
                self.results.uncached(f"task {name!r}", exc)
        return None

    def finish(self, name: str, finish: Callable[[], None]) -> None:
        """Call *finish*; count and log its failure, also a time limit: the outcome is known."""
        with self._runtime.counters.about(name):
            try:
                finish()
            except Exception as exc:
                self.results.uncached(f"task {name!r}", exc)

    def give_up(self, name: str, error: Exception, found: object) -> None:
        """Count that a call can't wait, or that the result *found* can't be had, and forget it."""
        with self._runtime.counters.about(name):
            self.results.uncached(f"task {name!r}", error)
        if isinstance(found, Answer):
            with suppress(OffloadError):
                self.results.forget(found)

    def prepare(self, task: Any) -> None:
        """Hash a memo task's code, in a worker's main process, so that its children needn't."""
        try:
            if self._options(task, None).memo:
                self._function(task)[0].code(self._runtime.classes.scope)
        except Exception as exc:
            self.results.uncached(f"task {task.name!r}", exc)

    def _options(self, task: Any, call: TaskOptions | None) -> TaskOptions:
        options = self._runtime.options(task.name)[0]
        if call is None or call is _NO_OPTIONS:
            return options
        return replace(
            options,
            memo=options.memo if call.memo is None else call.memo,
            memo_scope=call.memo_scope or options.memo_scope,
            wait=call.wait or options.wait,
            results=options.results if call.results is None else call.results,
            enabled=options.enabled if call.enabled is None else call.enabled,
            threshold=options.threshold if call.threshold is None else call.threshold,
        )

    def _scope(self, options: TaskOptions) -> str:
        scope = options.memo_scope or SCOPE
        return self._runtime.app.main or SCOPE if scope == SCOPE else f"={scope}"

    def _function(self, task: Any) -> tuple[Function, bool]:
        """Return a task's function, and whether the task's own methods receive its arguments."""
        facts = self._runtime.tasks[task.name]
        known = self._functions.get(task.name)
        if known is None or known[0] is not facts:
            options = self._runtime.options(task.name)[0]
            ignored = {*(options.inline or ()), *(options.memo_ignore or ())} - {"*"}
            function = Function(
                "task",
                task.name,
                _own_function(task.run),
                options.version,
                frozenset(ignored),
                options.memo_key,
                self._runtime.app.conf.result_serializer,
            )
            if len(self._functions) >= _CACHE:
                self._functions.clear()
            known = self._functions[task.name] = (facts, function, _reads(task))
        return known[1], known[2]

    def _key(
        self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any], *, refs: bool
    ) -> str:
        scope = self._runtime.classes.scope
        return self.results.key_of(function, args, kwargs, scope=scope, refs=refs)

    # -- for users

    def decorator(
        self,
        ttl: Duration | None,
        *,
        version: str | None,
        ignore: Iterable[str],
        key: Callable[[dict[str, Any]], Any] | None,
        scope: str,
        lease: Duration,
    ) -> Callable[[Callable[..., T]], functions.Memoized[T]]:
        """Return the decorator that `Offload.memoize` describes."""
        runtime = self._runtime
        return functions.remembering(
            lambda: runtime.content,
            self.results,
            runtime.counters,
            default_ttl=lambda: result_ttl(runtime, _NO_OPTIONS),
            given_ttl=ttl,
            code_scope=lambda: runtime.classes.scope,
            version=version,
            ignore=ignore,
            key=key,
            scope=lambda: self._scope(TaskOptions(memo_scope=scope)),
            lease=lease,
            grace=lambda: runtime.grace,
        )

    def forget(self, task: Any, /, *args: Any, **kwargs: Any) -> bool:
        """Forget the result of a call; return whether there was one.

        A computation of this call that is under way doesn't count either: its result isn't
        remembered.

        Args:
            task: a task of an app with offload, or a function made by `memoize`.
            args, kwargs: as passed to the task.

        Raises:
            TypeError: the arguments don't fit its parameters, or its code can't be hashed.
            SerializationError: an argument can't be serialized.
            ConfigurationError: the task's app has no offload.
            StoreUnavailable, StoreError: the store failed.
        """
        if isinstance(task, functions.Memoized):
            return task.forget(*args, **kwargs)
        memos = _memos_of(task)
        if memos is not self:
            return memos.forget(task, *args, **kwargs)
        options = self._options(task, None)
        args = tuple(self._as_delivered(task, options, value) for value in args)
        kwargs = {key: self._as_delivered(task, options, each) for key, each in kwargs.items()}
        try:
            key = self._key(self._function(task)[0], args, kwargs, refs=True)
        except NotRemembered:
            return False
        name = record_name(task.name, self._scope(options), key)
        return forget_record(self._runtime.content, name, self._runtime.grace)

    def forget_all(self, task: Any) -> int:
        """Forget all results of a task or function, in all scopes; return how many there were.

        Raises as `forget` does.
        """
        if isinstance(task, functions.Memoized):
            return task.forget_all()
        memos = _memos_of(task)
        if memos is not self:
            return memos.forget_all(task)
        return forget_records(self._runtime.content, task.name, self._runtime.grace)

    def _as_delivered(self, task: Any, options: TaskOptions, value: Any) -> Any:
        """Return an argument as a worker has it: a value sent in the message, or a reference."""
        if isinstance(value, Ref):
            return value
        if contains(value, (Ref,)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            made = {key: self._as_delivered(task, options, item) for key, item in items}
            return made if isinstance(value, dict) else type(value)(made.values())
        content = self._runtime.content
        payload = content.writer.serialize(
            value, task.serializer or self._runtime.app.conf.task_serializer
        )
        if options.enabled and payload.size >= (options.threshold or 0):
            return content.writer.unstored_ref(payload)
        return content.writer.embed(payload).get()


def _memos_of(task: Any) -> Memos:
    runtime = getattr(getattr(task, "app", None), "_offload", None)
    if not isinstance(runtime, Runtime):
        raise ConfigurationError(
            f"{task!r:.200} isn't a task of an app with offload, or a function made by memoize"
        )
    return runtime.part(Memos)


_NO_OPTIONS = TaskOptions.read(None, "message")


def _reads(task: Any) -> bool:
    """Return whether the task's own methods receive its arguments and its result."""
    return any(task_has_custom(task, name) for name in _READERS)


def _own_function(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a task's function without the wrappers that offload and Celery put around it."""
    while (inner := inspect.getattr_static(run, "__wrapped__", None)) is not None:
        module = getattr(run, "__globals__", {}).get("__name__", "")
        if not hasattr(run, GUARD) and module.partition(".")[0] != "celery":
            break
        run = inner
    return run
