"""A message in execution: resolve its references, and release its holds at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from typing import Any

from offload.catalog.late import pin
from offload.classes.scope import for_task
from offload.content.digest_cache import is_immutable
from offload.content.holds import Hold
from offload.errors import InvalidRef, OffloadError, StoreUnavailable
from offload.hooks.direct import resolve_direct, with_refs
from offload.hooks.message import (
    Note,
    all_unverified,
    as_lost,
    as_wire,
    body_of,
    described,
    message_name,
    task_holder,
    text_in,
    whole_refs,
    without_refusal,
)
from offload.hooks.options import TaskFacts
from offload.hooks.paths import (
    Path,
    contains,
    is_in_signature,
    is_signature,
    label,
    node_at,
    replace_each,
    replace_refs,
)
from offload.hooks.release import is_done, release
from offload.hooks.runtime import Runtime
from offload.hooks.state_ahead import StateAhead, asked_ahead
from offload.hooks.usercode import KnownRefs, using
from offload.ref import LostValue, Ref
from offload.settings import TaskOptions

_STEP = 0.5
"""Share of the grace period that a renewal adds to it, so that renewals are rare."""
_STEP_AT_LEAST = 30.0  # seconds between two renewals of one hold

_deliveries: dict[str, Delivery] = {}
_current: ContextVar[Delivery | None] = ContextVar("offload_delivery", default=None)

_ARGUMENTS = ("args", "kwargs")
_EMBEDDED = frozenset({"callbacks", "errbacks", "chain", "chord"})
_NO_OPTIONS = TaskOptions.read(None, "message")


LookUp = Callable[["Delivery"], bool]

current_delivery: Callable[[], Delivery | None] = _current.get
"""Return the delivery that this thread or greenlet executes; None if there is none."""


def running(task_id: Any) -> Delivery | None:
    """Return the delivery of this task, from any thread of its process; None if there is none.

    Pools for asyncio run a task's function in a different thread from its tracer.
    """
    return _deliveries.get(task_id) if isinstance(task_id, str) else None


class Delivery:
    """A task's message in execution.

    Attributes:
        task: the task instance.
        task_id: the id of the call.
        args, kwargs: the arguments that the task is called with.
        bound: ``args`` and ``kwargs`` with references in place of their values; None if the message
            has none.
        error: why references could not be resolved.
        facts: facts about the task; None if they couldn't be read: see `error`.
        options: the options given with the call.
        attempt: how many times the message was sent again because of a store outage.
        waits: how many times it was sent again because an equal call was computing.
        memo: the call that was looked up for a memo task (`hooks.memo.Call`), else None.
        started: whether the task's own function was entered.
        message: the name by which the message holds values, see `task_holder`; "" if it holds none.
        until: when the values that the message refers to may expire unless they are renewed; None
            if unknown.
        since: when the chord started that the task belongs to or leads to.
        parts_are_held: whether results of that chord's parts may be held for its body.
        known: the references of values that user code may publish again, and of the result.
        stores_result: whether the result backend is storing the task's result.
        state: the reference and holder of the stored state, if that is large and will be replaced.
        has_stored: whether a state was stored.
        failure: the exception that was stored last, and what replaces it in the result backend.
        ahead: the task's state in the backend, read while values were transferred; None: not read.
    """

    def __init__(self, runtime: Runtime, task: Any, task_id: Any) -> None:
        self.runtime = runtime
        self.task = task
        self.args: Sequence[Any] = ()
        self.kwargs: Mapping[str, Any] = {}
        self.bound: tuple[Any, Any] | None = None
        self.error: Exception | None = None
        self.attempt = self.waits = 0
        self.memo: Any = None
        self.started = False
        self.facts: TaskFacts | None = None
        self.options = _NO_OPTIONS
        self.message = ""
        self.until: float | None = None
        self.since: float | None = None
        self.parts_are_held = False
        self.known = KnownRefs()
        self.stores_result = False
        self.state: tuple[Ref[Any], str] | None = None
        self.has_stored = False
        self.failure: tuple[Any, Any] | None = None
        self.ahead: StateAhead | None = None
        self._stores_state = False
        self._read_later: Callable[[], None] | None = None
        self._released = False
        self._sent_again = False
        self.task_id = task_id
        self._look_up: LookUp | None = None
        self._held: list[Ref[Any]] = []
        self._pinned: list[Ref[Any]] = []
        self._parts: tuple[str, Sequence[Ref[Any]]] = ("", ())

    def __enter__(self) -> Delivery:  # noqa: PYI034 (typing.Self is of Python 3.11)
        self._token: Token[Delivery | None] = _current.set(self)
        if isinstance(self.task_id, str):
            _deliveries[self.task_id] = self
        self._using = using(self.known)
        self._using.__enter__()
        self._task_token = for_task.set(f"{self.task.name}[{self.task_id}]")
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.memo is not None:
            self.memo.close()
        self._using.__exit__(None, None, None)
        _current.reset(self._token)
        if isinstance(self.task_id, str):
            _deliveries.pop(self.task_id, None)
        for_task.reset(self._task_token)

    # -- arguments

    def receive(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        request: dict[str, Any],
        note: Any,
        look_up: LookUp | None = None,
    ) -> None:
        """Resolve the references that *note* lists; if that fails, set `error`.

        A value that could not be read becomes a `LostValue`, for hooks that run after a failure.

        Args:
            look_up: called once the references are verified; returns whether the arguments needn't
                be read (see `read_arguments`).
        """
        self._look_up = look_up
        self.args, self.kwargs = args, kwargs
        try:
            facts = self.facts = self.runtime.tasks[self.task.name]
            if note is not None:
                self._follow(Note.read(note), request, facts)
            elif request.get("is_eager"):
                args, kwargs = with_refs(self.task_id, args, kwargs)
                self.args, self.kwargs = resolve_direct(self.runtime, self.task.name, args, kwargs)
            if (
                look_up is not None
                and (facts.options.memo or self.options.memo)  # spares other tasks the call
                and self.bound is None
                and self.error is None
            ):
                look_up(self)  # there is nothing to read
            if facts.takes_refs and self.error is None and self._read_later is None:
                self._wrap(facts)
        except Exception as exc:  # raised by the guard, so that Celery reports it as the task's
            self.error = exc
            if isinstance(exc, OffloadError):
                self.error = described(exc, self.task.name, None)
        if self.error is not None and note is not None and self.bound is None:
            # The places of references are unknown. Callbacks must not receive them as data.
            request.update({key: all_unverified(request[key], note) for key in request})
            self.args = as_lost(all_unverified(args, note), self.error)
            self.kwargs = as_lost(all_unverified(kwargs, note), self.error)

    def _follow(self, note: Note, request: dict[str, Any], facts: TaskFacts) -> None:
        self.attempt, self.options, self.message = note.attempt, note.call, note.holds
        self.waits = note.waits
        self.until, self.since = note.until, note.since
        self._stores_state = not (self.task.ignore_result or request.get("ignore_result"))
        if self.until is not None and is_redelivered(request):
            self.until = 0.0  # an earlier delivery may have released everything
        self._held += map(Ref.unbound, note.also)
        if note.errbacks:
            request["errbacks"] = note.errbacks
        self.kwargs = without_refusal(self.kwargs)
        if note.key or note.mark:
            for field in _EMBEDDED.intersection(request):
                request[field] = whole_refs(request[field], note.key, note.mark)
        if note.refs or note.keep or note.within:
            self._resolve(request, note, facts)

    def _resolve(self, request: dict[str, Any], note: Note, facts: TaskFacts) -> None:
        root = {**request, "args": self.args, "kwargs": self.kwargs}

        def bind(node: Any, path: Path) -> Ref[Any]:
            ref = self._bind(node, path, facts, note.key)
            self._held.append(ref)
            return ref

        def bind_in_signature(node: Any, path: Path) -> Any:
            node = whole_refs(node, note.key, note.mark)
            return replace_refs(node, lambda ref: self._bind_pickled(ref, path, facts))

        bound = replace_each(root, [*note.refs, *note.keep], bind)
        if note.within:
            bound = replace_each(bound, note.within, bind_in_signature)
        request.update({key: bound[key] for key in request if key not in _ARGUMENTS})
        self.args, self.kwargs = bound["args"], bound["kwargs"]
        self.bound = bound["args"], bound["kwargs"]
        self._pin(note.refs, facts)
        if self.error is None and self._look_up is not None and self._look_up(self):
            self._read_later = lambda: self._read_bound(note, facts)
            return
        self._read_bound(note, facts)

    def read_arguments(self) -> None:
        """Read the arguments, unless they have been read: the function must run after all."""
        read, self._read_later = self._read_later, None
        if read is None:
            return
        try:
            read()
            facts = self.runtime.tasks[self.task.name]
            if facts.takes_refs and self.error is None:
                self._wrap(facts)
        except Exception as exc:
            self.error = exc

    def _read_bound(self, note: Note, facts: TaskFacts) -> None:
        """Read the values that the task receives, into `args` and `kwargs`."""
        wanted = [path for path in note.refs if not facts.asks_at(path)]
        root = {"args": self.args, "kwargs": self.kwargs}
        found = [(node_at(root, path), path) for path in wanted]
        found = [each for each in found if each[0].late is None or self.error is not None]
        with self.reading_state() if found and self._stores_state else nullcontext():
            values = self._read(found, facts)
        resolved = replace_each(root, wanted, lambda ref, _path: values.get(id(ref), ref))
        for ref, path in found:
            value = values[id(ref)]
            # What late references stood for may have been removed when the value is published.
            if ref not in self._pinned and (is_immutable(value) or is_in_signature(root, path)):
                self.known.remember(value, ref)
        if note.within:
            resolved = self._resolve_in_signatures(resolved, note, facts)
        self.args, self.kwargs = resolved["args"], resolved["kwargs"]

    def _resolve_in_signatures(self, root: Any, note: Note, facts: TaskFacts) -> Any:
        def get(ref: Ref[Any], path: Path, node: Any) -> Any:
            if ref.is_local:
                return ref.get()
            if ref.late is not None:
                if is_signature(node, plain=True):
                    return ref  # for the task of the signature
                pinned = self._pin_all([(ref, path)], facts).get(id(ref), ref)
                return self._read([(pinned, path)], facts)[id(pinned)]
            value = self._read([(ref, path)], facts)[id(ref)]
            self.known.remember(value, ref)
            return value

        return replace_each(
            root,
            [path for path in note.within if not facts.asks_at(path)],
            lambda node, path: replace_refs(node, lambda ref: get(ref, path, node)),
        )

    def _pin(self, paths: Sequence[Path], facts: TaskFacts) -> None:
        """Replace late references in the arguments by references to what the catalog has now.

        Those in signatures stay: they are for tasks that start later. `bound` keeps them all, as
        the message might be sent again.
        """
        root = {"args": self.args, "kwargs": self.kwargs}
        late = [(ref, path) for path in paths if (ref := node_at(root, path)).late is not None]
        late = [(ref, path) for ref, path in late if not is_in_signature(root, path)]
        if not late or self.error is not None:
            return
        pinned = self._pin_all(late, facts)
        lazy = [pinned[id(ref)] for ref, path in late if id(ref) in pinned and facts.asks_at(path)]
        if lazy:  # the task may read them long after they were removed
            ttl = renewed_for(self.runtime.grace)
            self.runtime.content.holds.add(lazy, Hold(ttl, self.holder))
            self._held += lazy
            until = self.runtime.content.now() + ttl
            self.until = until if self.until is None else min(self.until, until)
        paths = [path for _, path in late]
        root = replace_each(root, paths, lambda ref, _path: pinned.get(id(ref), ref))
        self.args, self.kwargs = root["args"], root["kwargs"]

    def _pin_all(
        self, found: Sequence[tuple[Ref[Any], Path]], facts: TaskFacts
    ) -> dict[int, Ref[Any]]:
        """Return what late references stand for, by ``id(late)``; if that fails, set `error`."""
        content, counters = self.runtime.content, self.runtime.counters
        refs: dict[int, Ref[Any]] = {}
        for (late, path), outcome in zip(
            found, pin(content, [ref.late for ref, _ in found if ref.late]), strict=True
        ):
            where = label(path, facts.parameters)
            with counters.about(self.task.name, where):
                if isinstance(outcome, Ref):
                    if late.late is not None:
                        counters.of_object(late.late.bucket, late.late.name, catalog_late=1)
                    refs[id(late)] = outcome
                else:
                    counters.failed(outcome)
                    store = self.runtime.store.url
                    failed = described(outcome, self.task.name, where, store=store)
                    self.error = self.error or failed
        self._pinned += refs.values()
        return refs

    def _bind(self, node: Any, path: Path, facts: TaskFacts, key: str) -> Ref[Any]:
        text = text_in(node, key)
        if text is None:
            where = label(path, facts.parameters)
            raise InvalidRef(
                f"task {self.task.name!r}, {where}: the message declares a reference here, "
                f"but contains a {type(node).__name__}",
                task=self.task.name,
                argument=where,
            )
        if not isinstance(self.error, StoreUnavailable):
            try:
                return self.runtime.content.open(text)
            except OffloadError as exc:
                if isinstance(exc, StoreUnavailable):
                    self.runtime.counters.failed(exc)
                where = label(path, facts.parameters)
                self.error = self.error or described(exc, self.task.name, where)
        # It is passed on as a reference, never as data, and is verified where it arrives.
        return Ref.unbound(text)

    def _bind_pickled(self, ref: Ref[Any], path: Path, facts: TaskFacts) -> Ref[Any]:
        return ref if ref.is_local else self._bind(ref, path, facts, "")

    def _read(self, found: Sequence[tuple[Ref[Any], Path]], facts: TaskFacts) -> dict[int, Any]:
        """Return values, or placeholders for lost ones, by ``id(ref)``."""
        counters = self.runtime.counters
        read: dict[int, Any] = {}
        if self.error is None:
            values = self.runtime.content.reader.get_all([ref for ref, _ in found])
        for ref, path in found:
            error = self.error
            if error is not None and (
                ref.resolve is None or ref.late is not None or isinstance(error, StoreUnavailable)
            ):
                read[id(ref)] = LostValue.of(ref, error)
                continue
            where = label(path, facts.parameters)
            with counters.about(self.task.name, where):
                try:
                    read[id(ref)] = next(values) if error is None else ref.get()
                except OffloadError as exc:
                    store = self.runtime.store.url
                    failed = described(exc, self.task.name, where, digest=ref.digest, store=store)
                    self.error = error or failed
                    read[id(ref)] = LostValue.of(ref, failed)
        return read

    def reading_state(self) -> AbstractContextManager[None]:
        """Read the state that Celery will ask for while this block waits for the store."""
        if self.ahead is not None and self.ahead.is_fresh:
            return nullcontext()
        return asked_ahead(self.task.backend, self.task_id, self._take_state)

    def _take_state(self, ahead: StateAhead | None) -> None:
        self.ahead = ahead

    def _wrap(self, facts: TaskFacts) -> None:
        """Wrap values that were sent in the message, for parameters annotated with Ref."""
        args = [_as_asked(v, i, facts) for i, v in enumerate(self.args)]
        self.args = tuple(args) if isinstance(self.args, tuple) else args
        self.kwargs = {key: _as_asked(value, key, facts) for key, value in self.kwargs.items()}

    def arrived(self) -> tuple[Any, Any] | None:
        """Return the arguments in wire form; None if they contain no references."""
        if self.bound is None:
            return None
        args, kwargs = self.bound
        return as_wire(args), as_wire(kwargs)

    # -- holds

    @property
    def holder(self) -> str:
        """The holder of the message's values. If the message holds none, this creates a name."""
        self.message = self.message or message_name()
        return task_holder(self.task_id, self.message)

    def hold(self, ref: Ref[Any]) -> None:
        """Release *ref* together with the message's references."""
        self._held.append(ref)

    def record_published(self, task_id: Any, refs: Sequence[Ref[Any]]) -> None:
        """Record the references of a message that this task published, which holds them now."""
        request = self.task.request
        held = self.parts_are_held or ignores_result(self.task, request)
        if task_id == body_of(request) and held:
            self._parts = task_holder(task_id), refs  # that name has held them until now

    def sent_again(self) -> None:
        """Leave the message's holds to its resent copy."""
        self._sent_again = True
        self.message = ""

    @property
    def has_refs(self) -> bool:
        """Whether there are references to hold."""
        return bool(self._held)

    def keep(self, ttl: float) -> None:
        """Hold the message's references for *ttl* seconds more. Raises OffloadError.

        Called by another thread while the task runs.
        """
        if self._sent_again:
            return
        refs = [*map(self.runtime.content.opened, self._held)]
        name = self.holder
        self.runtime.content.holds.add(refs, Hold(ttl, name))
        if self._released:  # the task has finished: release them here
            release(self.runtime, refs, name)

    def finish(self, state: str, delivery_info: Mapping[str, Any] | None) -> None:
        """Release the message's holds, if the task ended in a *state* that allows it."""
        parts_holder, parts = self._parts
        if not (self.message or parts):
            return
        if is_done(self.runtime.app, self.task, state, delivery_info):
            self._released = True
            if self.message:
                release(self.runtime, self._held, self.holder, later=True)
            if parts:
                release(self.runtime, parts, parts_holder, later=True)


def ignores_result(task: Any, request: Any) -> bool:
    """Return whether the result is ignored. Before Celery 5.6, a request could not override a task
    that ignores results.
    """
    try:
        from celery.app.task import get_actual_ignore_result
    except ImportError:
        return bool(task.ignore_result or request.ignore_result)
    return bool(get_actual_ignore_result(task, request))


def is_redelivered(request: Mapping[str, Any]) -> bool:
    """Return whether the broker delivered the message of *request* before."""
    info = request.get("delivery_info")
    if not (type(info) is dict or isinstance(info, Mapping)):
        return False
    return bool(info.get("redelivered"))


def _as_asked(value: Any, key: int | str, facts: TaskFacts) -> Any:
    if not facts.asks_for_ref(key):
        return value
    if not facts.asks_for_refs(key):
        return _as_ref(value)
    if isinstance(value, tuple):
        return tuple(map(_as_ref, value))
    return list(map(_as_ref, value)) if isinstance(value, list) else value


def _as_ref(value: Any) -> Any:
    return value if contains(value, (Ref,)) else Ref.local(value)


def renewed_for(grace: float) -> float:
    """Return for how many seconds a hold is renewed."""
    return grace + max(grace * _STEP, _STEP_AT_LEAST)
