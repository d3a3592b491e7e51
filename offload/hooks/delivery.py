"""One message being executed: its references resolved before, its result kept for after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

from offload.content.holds import Hold
from offload.errors import InvalidRef, OffloadError, StoreUnavailable, UnsupportedVersion
from offload.hooks.eager import with_refs
from offload.hooks.known import KnownRefs, Snapshot, knowing
from offload.hooks.options import TaskFacts
from offload.hooks.outgoing import described
from offload.hooks.paths import (
    Path,
    contains,
    is_signature,
    label,
    replace_each,
    replace_refs,
)
from offload.hooks.release import is_done, message_name, release, task_holder
from offload.ref import Ref, has_wire_form, wire_text
from offload.registry.apps import for_task
from offload.settings import TaskOptions

if TYPE_CHECKING:
    from offload.hooks.app import Offload

__all__ = (
    "EMBED",
    "HELD",
    "REQUIRED",
    "REQUIRED_BYTES",
    "Delivery",
    "body_of",
    "current_delivery",
    "ignores_result",
    "mark_refs",
    "needed_wires",
    "resolve_direct",
)

EMBED = "offload"
"""Key in the message's embed, beside ``callbacks`` and ``chain``: where references stand."""
HELD = "_offload_held"
"""Attribute of a request in the worker's main process: in what name its message holds
something, and the wire texts of that.
"""
REQUIRED = "__offload__"
"""A keyword argument that makes a worker without this library fail, where the serializer
would not: no task has a parameter of this name."""
REQUIRED_BYTES = REQUIRED.encode()
"""The same where the serializer keeps bytes as keys: then not even ``**kwargs`` takes it."""


_current: ContextVar[Delivery | None] = ContextVar("offload_delivery", default=None)

_FAR = 1 << 53  # beyond any time
NOTE_VERSION = 1
"""Of the note on references in a message: what is written, and the newest that is read."""
_NO_OPTIONS = TaskOptions.read(None, "message")


def current_delivery() -> Delivery | None:
    """Return the delivery that this thread or greenlet executes."""
    return _current.get()


class Delivery:
    """A task's message in execution.

    Attributes:
        task: the task instance.
        args, kwargs: what the task is called with.
        bound: ``args`` and ``kwargs`` with references instead of what they refer to.
        error: why they could not be resolved.
        attempt: how many times the message was sent again for a store outage.
        started: whether the task's own function was entered.
        message: in what name its values are held, see `task_holder`; empty: in none.
        until: when the values that the message refers to may end, unless that is renewed; None
            if it doesn't say.
    """

    def __init__(self, hook: Offload, task: Any, task_id: Any) -> None:
        self.hook = hook
        self.task = task
        self.args: Sequence[Any] = ()
        self.kwargs: Mapping[str, Any] = {}
        self.bound: tuple[Any, Any] | None = None
        self.error: Exception | None = None
        self.attempt = 0
        self.started = False
        self.options = _NO_OPTIONS
        self.message = ""
        self.until: float | None = None
        self._released = False
        self._sent_again = False
        self._task_id = task_id
        self._held: list[Ref[Any]] = []
        self._parts: tuple[str, Sequence[Ref[Any]]] = ("", ())
        self._result: Any = None
        self._result_refs: dict[str, Ref[Any]] = {}
        self._result_shown: Snapshot | None = None
        self._known = KnownRefs()

    def __enter__(self) -> Delivery:  # noqa: PYI034 (typing.Self is of Python 3.11)
        self._token: Token[Delivery | None] = _current.set(self)
        self._knowing = knowing(self._known)
        self._knowing.__enter__()
        self._task_token = for_task.set(f"{self.task.name}[{self._task_id}]")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._knowing.__exit__(None, None, None)
        _current.reset(self._token)
        for_task.reset(self._task_token)

    # -- arguments

    def receive(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], request: dict[str, Any], note: Any
    ) -> None:
        """Resolve what *note* says are references; keeps the error if that fails."""
        self.args, self.kwargs = args, kwargs
        try:
            facts = self.hook.tasks[self.task.name]
            if note is not None:
                self._check(note)
                if self.until is not None and _is_redelivered(request):
                    self.until = 0.0  # the first delivery may have released everything
                self._resolve(request, note, facts)
            elif request.get("is_eager"):
                args, kwargs = with_refs(self._task_id, args, kwargs)
                self.args, self.kwargs = resolve_direct(self.hook, facts, args, kwargs)
            if facts.takes_refs and self.error is None:
                self._wrap(facts)
        except Exception as exc:  # raised by the guard, where Celery reports it as the task's
            self.error = exc
            if isinstance(exc, OffloadError):
                self.error = described(exc, self.task.name, None)
        if self.error is not None and note is not None and self.bound is None:
            # It is not known where references stand. Callbacks must not get them as data.
            request.update({key: _all_unverified(request[key]) for key in request})
            self.args, self.kwargs = _all_unverified(list(args)), _all_unverified(dict(kwargs))

    def _check(self, note: Any) -> None:
        if not isinstance(note, dict) or not isinstance(note.get("v"), int):
            raise InvalidRef("the message's note on references is broken")
        if note["v"] > NOTE_VERSION:
            raise UnsupportedVersion(
                f"a message of version {note['v']} arrived, this offload reads up to "
                f"{NOTE_VERSION}; upgrade offload on workers before publishers"
            )
        self.attempt = int(note.get("attempt", 0))
        self.options = TaskOptions.read(note.get("call"), "message")
        self.message = _name(note)
        self.until = _until(note)
        self._held += map(Ref.unbound, filter(has_wire_form, note.get("also", ())))

    def _resolve(self, request: dict[str, Any], note: Any, facts: TaskFacts) -> None:
        refs: list[Path] = note.get("refs", [])
        keep: list[Path] = note.get("keep", [])
        within: list[Path] = note.get("within", [])  # in signatures that were pickled
        if not refs and not keep and not within:
            return
        root = {**request, "args": self.args, "kwargs": dict(self.kwargs)}
        _without_required(root["kwargs"])

        def bind(node: Any, path: Path) -> Ref[Any]:
            ref = self._bind(node, path, facts)
            self._held.append(ref)
            return ref

        bound = replace_each(root, [*refs, *keep], bind)
        bound = replace_each(
            bound,
            within,
            lambda node, path: replace_refs(node, lambda ref: self._bind(ref, path, facts)),
        )
        request.update({key: bound[key] for key in request if key not in ("args", "kwargs")})
        self.args, self.kwargs = bound["args"], bound["kwargs"]
        self.bound = bound["args"], bound["kwargs"]
        if self.error is not None:
            return
        wanted = [path for path in refs if not _asked_for(path, facts)]
        root = {"args": self.args, "kwargs": self.kwargs}
        found: list[Ref[Any]] = []
        replace_each(root, wanted, lambda ref, _path: found.append(ref))
        values = self.hook.content.get_all(found)
        resolved = replace_each(
            root, wanted, lambda ref, path: self._next(values, ref, path, facts)
        )
        for path in wanted:
            if len(path) > _ARGUMENT and _is_in_signature(root, path):
                self._known.remember(_at(resolved, path), _at(root, path))

        def get(ref: Ref[Any], path: Path) -> Any:
            value = self._next(self.hook.content.get_all([ref]), ref, path, facts)
            self._known.remember(value, ref)
            return value

        resolved = replace_each(
            resolved,
            [path for path in within if not _asked_for(path, facts)],
            lambda node, path: replace_refs(node, lambda ref: get(ref, path)),
        )
        self.args, self.kwargs = resolved["args"], resolved["kwargs"]

    def _bind(self, node: Any, path: Path, facts: TaskFacts) -> Ref[Any]:
        where = label(path, facts.parameters)
        text = wire_text(node)
        if text is None:
            raise InvalidRef(
                f"task {self.task.name!r}, {where}: the message says that a reference stands here, "
                f"but there is a {type(node).__name__}",
                task=self.task.name,
                argument=where,
            )
        if not isinstance(self.error, StoreUnavailable):
            try:
                return self.hook.content.open(text)
            except OffloadError as exc:
                self.error = self.error or described(exc, self.task.name, where)
        # It goes on as what it is said to be, never as data, and is verified where it arrives.
        return Ref.unbound(text)

    def _next(self, values: Iterator[Any], ref: Ref[Any], path: Path, facts: TaskFacts) -> Any:
        """Return the next value, that of *ref* at *path*."""
        where = label(path, facts.parameters)
        counters = self.hook.counters
        with counters.about(self.task.name, where):
            try:
                return next(values)
            except OffloadError as exc:
                counters.failed(exc)
                store = self.hook.store.url
                raise described(exc, self.task.name, where, digest=ref.digest, store=store) from exc

    def _wrap(self, facts: TaskFacts) -> None:
        """Give parameters annotated Ref one, also for what was small enough to be sent."""
        args = [_as_ref(v) if facts.asks_for_ref(i) else v for i, v in enumerate(self.args)]
        self.args = tuple(args) if isinstance(self.args, tuple) else args
        self.kwargs = {
            key: _as_ref(value) if facts.asks_for_ref(key) else value
            for key, value in self.kwargs.items()
        }

    def arrived(self) -> tuple[Any, Any] | None:
        """Return the arguments in wire form, or None where they held no references."""
        if self.bound is None:
            return None
        args, kwargs = self.bound
        return _wire(args), _wire(kwargs)

    # -- holds

    @property
    def holder(self) -> str:
        """In whose name the message's values are held. Asked for the first time by a task
        whose message held none, it makes a name.
        """
        self.message = self.message or message_name()
        return task_holder(self._task_id, self.message)

    def hold(self, ref: Ref[Any]) -> None:
        """Have *ref* given up together with the message's references."""
        self._held.append(ref)

    def published(self, task_id: Any, refs: Sequence[Ref[Any]]) -> None:
        """Note what a message that this task published refers to, and holds from now on."""
        request = self.task.request
        if task_id == body_of(request) and ignores_result(self.task, request):
            self._parts = task_holder(task_id), refs  # by that name they were kept until now

    def sent_again(self) -> None:
        """Leave what the message holds to the one that it was sent again as."""
        self._sent_again = True
        self.message = ""

    @property
    def refers(self) -> bool:
        """Whether there is anything to keep."""
        return bool(self._held)

    def keep(self, ttl: float) -> None:
        """Hold what the message refers to for *ttl* seconds more; called by another thread while
        the task runs. Raises OffloadError.
        """
        if self._sent_again:
            return
        refs = [*map(self.hook.content.opened, self._held)]
        name = self.holder
        self.hook.content.keep_all(refs, Hold(ttl, name))
        if self._released:  # the task has finished meanwhile, and nobody else would do it
            release(self.hook, refs, name)

    def finish(self, state: str, delivery_info: Mapping[str, Any] | None) -> None:
        """Give up what the message held, if the task ended in a *state* that allows it."""
        parts_holder, parts = self._parts
        if not (self.message or parts):
            return
        if is_done(self.hook.app, self.task, state, delivery_info):
            self._released = True
            if self.message:
                release(self.hook, self._held, self.holder)
            if parts:
                release(self.hook, parts, parts_holder)

    # -- result

    def keep_result(self, result: Any, refs: Mapping[str, Ref[Any]]) -> None:
        """Remember by which references (by serializer) the task's result travels."""
        self._result = result
        self._result_refs = dict(refs)
        self._result_shown = None

    def result_resolved(self, ref: Ref[Any], value: Any) -> None:
        """Have *value*, which a task that returned *ref* gives, travel by that reference."""
        if self._result is ref:
            self._result = value

    def show_result(self) -> None:
        """Have a change of the result noticed from now on, as user code is given it."""
        if self._result_refs and self._result_shown is None:
            self._result_shown = Snapshot.of(self._result)
            if self._result_shown is None and not isinstance(self._result, Ref):
                self._result_refs = {}

    def result_ref(self, value: Any, native: str) -> Ref[Any] | None:
        """Return the reference of *value* if it is the task's own result, stored."""
        if self._result_shown is not None and not self._result_shown.holds():
            self._result_refs = {}
        if self._result_refs and value is self._result:
            return self._result_refs.get(native)
        return None


_ARGUMENT = 2
"""Length of the path of an argument."""


def _at(node: Any, path: Path) -> Any:
    for key in path:
        node = node[str(key) if isinstance(node, dict) and key not in node else key]
    return node


def _is_in_signature(node: Any, path: Path) -> bool:
    """Return whether a path leads through something that a task can publish as a signature."""
    return any(is_signature(_at(node, path[:end]), plain=True) for end in range(2, len(path)))


def body_of(request: Any) -> Any:
    """Return the id of the body of the chord that *request* is a part of; None: of none."""
    return ((request.chord or {}).get("options") or {}).get("task_id")


def ignores_result(task: Any, request: Any) -> bool:
    """Return whether nobody wants the result; before Celery 5.6, a request could only add
    to what the task says.
    """
    try:
        from celery.app.task import get_actual_ignore_result
    except ImportError:
        return bool(task.ignore_result or request.ignore_result)
    return bool(get_actual_ignore_result(task, request))


def resolve_direct(
    hook: Offload, facts: TaskFacts, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Resolve Refs in a call that went through no message (eager, or a direct call)."""
    if not contains(list(args), (Ref,)) and not contains(dict(kwargs), (Ref,)):
        return args, kwargs
    return (
        [v if facts.asks_for_ref(i) else replace_refs(v, hook.get) for i, v in enumerate(args)],
        {
            key: v if facts.asks_for_ref(key) else replace_refs(v, hook.get)
            for key, v in kwargs.items()
        },
    )


def mark_refs(request: dict[str, Any]) -> None:
    """Put an unverified Ref wherever the note in *request* says that a reference stands.

    For a request that is not executed here but ended or sent again (its task was killed,
    revoked or expired): what it carries goes on as references, and nothing is fetched.
    """
    note = request.pop(EMBED, None)
    request[HELD] = "", []
    if note is None:
        return
    if not isinstance(note, dict) or note.get("v") != NOTE_VERSION:
        request.update({key: _all_unverified(request[key]) for key in request})
        return
    held = [*filter(has_wire_form, note.get("also", ()))]
    request[HELD] = _name(note), held
    paths = [*note.get("refs", ()), *note.get("keep", ())]
    if not paths:
        return
    root = {**request, "kwargs": dict(request["kwargs"])}
    _without_required(root["kwargs"])

    def mark(node: Any, _path: Path) -> Any:
        ref = _unverified(node)
        if isinstance(ref, Ref):
            held.append(ref.wire)
        return ref

    request.update(replace_each(root, paths, mark))


def _is_redelivered(request: Mapping[str, Any]) -> bool:
    info = request.get("delivery_info")
    return isinstance(info, Mapping) and bool(info.get("redelivered"))


def _until(note: dict[str, Any]) -> float | None:
    until = note.get("until")
    return float(until) if type(until) is int and abs(until) < _FAR else None


def _name(note: dict[str, Any]) -> str:
    name = note.get("holds")
    return name if isinstance(name, str) else ""


def needed_wires(
    args: Sequence[Any], kwargs: Mapping[str, Any], note: Any, facts: TaskFacts
) -> list[str]:
    """Return the texts, unverified, of the references that a message's task is given the
    values of. Raises InvalidRef where *note* is not true.
    """
    if note["v"] != NOTE_VERSION:
        return []
    found: list[str] = []

    def see(node: Any, _path: Path) -> Any:
        text = wire_text(node)
        if text is not None:
            found.append(text)
        return node

    wanted = [path for path in note.get("refs", ()) if not _asked_for(path, facts)]
    replace_each({"args": args, "kwargs": kwargs}, wanted, see)
    return found


def _unverified(node: Any) -> Any:
    text = wire_text(node)
    return node if text is None else Ref.unbound(text)


def _all_unverified(value: Any) -> Any:
    """Return *value* with all that has the form of a reference as an unverified Ref."""
    text = wire_text(value)
    if text is not None:
        return Ref.unbound(text)
    if type(value) is dict:
        return {key: _all_unverified(item) for key, item in value.items()}
    return type(value)(map(_all_unverified, value)) if type(value) in (list, tuple) else value


def _without_required(kwargs: dict[Any, Any]) -> None:
    kwargs.pop(REQUIRED, None)
    kwargs.pop(REQUIRED_BYTES, None)


def _wire(value: Any) -> Any:
    return replace_refs(value, Ref.__json__)


def _as_ref(value: Any) -> Any:
    return value if contains(value, (Ref,)) else Ref.local(value)


def _asked_for(path: Path, facts: TaskFacts) -> bool:
    return facts.takes_refs and len(path) > 1 and facts.asks_for_ref(path[1])
