"""Memo tasks: return the result of an equal call instead of running the function.

A call is looked up after its references are verified and before they are read, so that a hit
downloads no argument. A hit passes through Celery's tracer as any task does, except that
`hooks.execute` returns the remembered result instead of calling the function.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded
from celery.app.trace import task_has_custom
from celery.result import ResultBase

from offload.errors import ConfigurationError, OffloadError
from offload.hooks.delivery import Delivery
from offload.hooks.options import TaskFacts
from offload.hooks.paths import contains
from offload.hooks.release import Releaser, result_ttl
from offload.hooks.runtime import Runtime
from offload.memo import functions
from offload.memo.flight import BRIEF, Busy, Computation
from offload.memo.keys import SCOPE, Function, NotRemembered, plain_function
from offload.memo.records import forget_record, forget_records, record_name
from offload.memo.results import LEASE, Answer, Results, is_lasting
from offload.metrics.counters import about_now
from offload.ref import Ref
from offload.settings import TaskOptions
from offload.settings.units import Duration

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE, _FACTOR = 0.2, 5.0, 1.5  # seconds until a message is delivered again
_LEAST_PAUSE = 0.05
_READERS = ("before_start", "on_success", "after_return")
"""Methods of a task that receive its arguments and its result."""
_CACHE = 10_000  # tasks whose constant facts are cached

Found = Answer | Computation | Busy
"""What `Results.find` returns."""


class Call:
    """A call of a memo task that was looked up.

    Attributes:
        options: the task's options, overridden by those of the call.
        scope: the call's scope, as in its record's name.
    """

    __slots__ = ("_claimed", "_finish", "_found", "_memos", "function", "options", "scope")

    def __init__(
        self,
        memos: Memos,
        function: Function,
        options: TaskOptions,
        scope: str,
        claimed: Callable[[], Found],
    ) -> None:
        self._memos = memos
        self.function = function
        self.options = options
        self.scope = scope
        self._claimed: Callable[[], Found] | None = claimed
        self._found: Found | None = None
        self._finish: Callable[[], None] | None = None

    @property
    def found(self) -> Found | None:
        """The call's result, its computation here, or `Busy` if another caller computes it; None if
        it is computed without being remembered.

        The first access waits for the answer.
        """
        claimed = self._claimed
        if claimed is not None:
            self._claimed = None
            self._found = self._memos.attempt(self.function.name, claimed)
        return self._found

    @property
    def is_busy(self) -> bool:
        """Whether another caller is computing an equal call."""
        return isinstance(self.found, Busy)

    @property
    def stores_result(self) -> bool:
        """Whether large results are stored by reference."""
        return bool(self.options.enabled and self.options.results)

    def countdown(self, waits: int) -> float:
        """Return the seconds to wait until the call is looked up again.

        The wait grows, but ends at most 0.2 s after the other caller's lease expires.

        Args:
            waits: how often the call has waited.
        """
        pause = min(_FIRST_PAUSE * _FACTOR ** min(waits, 50), _LONGEST_PAUSE)
        pause *= random.uniform(0.75, 1.25)  # noqa: S311 (no secret: spreads those who wait)
        found = self.found
        left = found.left if isinstance(found, Busy) else 0.0
        return max(min(pause, left + _FIRST_PAUSE), _LEAST_PAUSE)

    def remember(self, result: Any, known: Ref[Any] | None, seconds: float) -> None:
        """Remember *result* if this call computed it, and if it can be remembered.

        Args:
            known: the reference of the result, if it is stored.
            seconds: how long the computation took.
        """
        found = self._found
        if type(found) is Computation and is_lasting(result) and not isinstance(result, ResultBase):
            self._finish = self._memos.remember(self, found, result, known, seconds)

    def close(self) -> None:
        """Wait until the result is remembered. If it won't be, let others compute. Never raises."""
        if self._finish is not None:
            self._memos.finish(self.function.name, self._finish)
        try:
            found = self.found  # the task may have ended before its function was entered
            if type(found) is Computation and not found.ended:
                self._memos.results.flights.abandon(found)
        except Exception:  # a time limit, which comes too late: the outcome is known
            return

    def give_up(self, error: Exception) -> None:
        """Compute the call without remembering its result, because of *error*."""
        found, self._found = self.found, None
        self._memos.give_up(self.function.name, error, found)


class _Known(NamedTuple):
    """Properties that all calls of a memo task share.

    Attributes:
        facts: the task's facts when the rest was derived from them.
        options, scope: those of calls without options.
        reads: whether the task's own methods receive its arguments.
        is_on: whether offload is on.
    """

    facts: TaskFacts
    options: TaskOptions
    scope: str
    function: Function
    reads: bool
    is_on: bool


class Memos:
    """The remembered results of an app's tasks and functions."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._known: dict[str, _Known] = {}
        self.results = Results(lambda: runtime.content, runtime.counters)
        # Postponing is safe: each result follows a look-up, which has carried earlier results.
        self._settle_soon = partial(runtime.part(Releaser).flush_soon, BRIEF, postpone=True)

    # -- for the hooks

    def look_up(self, delivery: Delivery) -> bool:
        """Look up the call of *delivery*, if its task is a memo task; set `Delivery.memo`.

        Returns whether its arguments needn't be read. If the message has no references, this
        doesn't wait for the answer.
        """
        task = delivery.task
        known = self._known.get(task.name)
        if known is None or known.facts is not delivery.facts:
            known = self._learn(task)
        options, scope, function = known.options, known.scope, known.function
        if delivery.options is not _NO_OPTIONS:
            options = self._options(task, delivery.options)
            scope = self._scope(options)
        if not options.memo or not known.is_on:
            return False
        token = about_now.set((task.name, ""))
        try:
            # Use `args`, not `bound`: there, late references are replaced, so their digests count.
            has_refs = delivery.bound is not None
            key = self.results.key_of(
                function, delivery.args, delivery.kwargs, self._runtime.classes.scope, refs=has_refs
            )
            claimed = self.results.start(
                record_name(task.name, scope, key),
                options.memo_lease or LEASE,
                block=options.wait == "block",
                read=known.reads or not (options.enabled and options.results),
            )
        except NotRemembered:
            return False
        except SoftTimeLimitExceeded:
            raise
        except Exception as exc:
            self.results.uncached(f"task {task.name!r}", exc)
            return False
        finally:
            about_now.reset(token)
        call = delivery.memo = Call(self, function, options, scope, claimed)
        if not has_refs and options.wait != "block":
            return False
        found = call.found
        return isinstance(found, Busy) or (isinstance(found, Answer) and not known.reads)

    def attempt(self, name: str, act: Callable[[], T]) -> T | None:
        """Call *act*, and return its result. If it fails, count and log that, and return None."""
        token = about_now.set((name, ""))
        try:
            return act()
        except SoftTimeLimitExceeded:
            raise
        except Exception as exc:
            self.results.uncached(f"task {name!r}", exc)
            return None
        finally:
            about_now.reset(token)

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

        def remember() -> Callable[[], None]:
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
                later=self._settle_soon if self._runtime.is_worker else None,
            )

        return self.attempt(name, remember)

    def finish(self, name: str, finish: Callable[[], None]) -> None:
        """Call *finish*; count and log any failure, even a time limit: the task has ended."""
        token = about_now.set((name, ""))
        try:
            finish()
        except Exception as exc:
            self.results.uncached(f"task {name!r}", exc)
        finally:
            about_now.reset(token)

    def give_up(self, name: str, error: Exception, found: object) -> None:
        """Count that a call can't wait, or that the result *found* can't be read; forget that."""
        with self._runtime.counters.about(name):
            self.results.uncached(f"task {name!r}", error)
        if isinstance(found, Answer):
            with suppress(OffloadError):
                self.results.forget(found)

    def prepare(self, task: Any) -> None:
        """Hash a memo task's code in a worker's main process, so that its children needn't."""
        try:
            if self._options(task, None).memo:
                self._learn(task).function.code(self._runtime.classes.scope)
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

    def _learn(self, task: Any) -> _Known:
        """Return the properties that all calls of a task share, and cache them."""
        options, facts = self._runtime.options(task.name)
        known = self._known.get(task.name)
        if known is None or known.facts is not facts:
            ignored = {*(options.inline or ()), *(options.memo_ignore or ())} - {"*"}
            function = Function(
                "task",
                task.name,
                plain_function(task.run),
                options.version,
                frozenset(ignored),
                options.memo_key,
                self._runtime.app.conf.result_serializer,
            )
            if len(self._known) >= _CACHE:
                self._known.clear()
            is_on = self._runtime.settings.mode == "on"
            known = _Known(facts, options, self._scope(options), function, _reads(task), is_on)
            self._known[task.name] = known
        return known

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

        If the call is being computed now, that result isn't remembered, either.

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
        function, scope = self._learn(task).function, self._runtime.classes.scope
        try:
            key = self.results.key_of(function, args, kwargs, scope)
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
        """Return an argument as a worker receives it: a value in the message, or a reference."""
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
