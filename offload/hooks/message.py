"""References in a message: the note that lists their paths, and the names that hold their values.

Messages are untrusted. `Note.read` is the only reader of a note: it raises InvalidRef for anything
that `Note.write` wouldn't have written, so that other code can rely on a note. This matters most in
a worker's main process, which an error would end.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from offload.content.holds import holder
from offload.errors import (
    InvalidRef,
    KeyUnavailable,
    OffloadError,
    SerializationError,
    UnsupportedVersion,
)
from offload.hooks.options import TaskFacts
from offload.hooks.paths import Path, container_without_paths, replace_each, replace_refs
from offload.hooks.short import KEY_FORM, expand, shorten
from offload.ref import MESSAGE_KEY, LostValue, Ref, has_wire_form, wire_text
from offload.settings import TaskOptions
from offload.text import type_name

EMBED = "offload"
"""Key of the note in a message's embed, beside ``callbacks`` and ``chain``."""
STAND_IN = "celery.backend_cleanup"
"""The task that the header of a message with references names, for workers without this library.

Each worker has this task, and it takes no arguments. So a worker without this library never runs a
user's function on references, no matter which parameters that takes: the message fails as any task
does, with its error callbacks, and the error says why. The header `HEADER` has the task's own name.
"""
HEADER = "offload"
"""Message header for people and monitoring: how many references, how many bytes, which task."""
REFUSAL = (
    "__offload__: this task's arguments are in a store; install offload on this worker, "
    "and call Offload(app)"
)
"""A keyword argument that `STAND_IN` refuses by name, so that the error says what to do."""
_EARLIER_REFUSALS = ("__offload__", b"__offload__")
"""Keyword arguments that earlier releases added in place of `REFUSAL`, as a string or bytes. A task
may have a parameter of this name."""
NOTE_VERSION = 4
"""The newest version of the note that is read: that of pickled messages with `Note.mark`."""
MALFORMED = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors that Celery raises for a malformed chain, chord, or callback in a message. Raised in a
worker's main process, they would end the worker."""
HELD = "_offload_held"
"""Attribute of a request in a worker's main process: the name by which its message holds values,
and their wire texts."""

_MARK = "mark"
_LONG_REFS, _SHORT_REFS = 2, 3  # versions of the notes of other messages
_ROOTS = frozenset({"args", "kwargs", "callbacks", "errbacks", "chain", "chord"})
_ARGUMENTS = frozenset({"args", "kwargs"})
_PARTS = frozenset({int, str})
_KEYS: Mapping[Any, type] = {"args": int, "kwargs": str}
LONGEST_PATH = 256  # keys
_LATEST = 1 << 53  # later than any time
_DEEPEST = 100  # levels of containers in which unverified references are searched for
_NO_OPTIONS = TaskOptions.read(None, "message")


@dataclass(frozen=True)
class Note:
    """The note in a message: paths of its references, and facts about its delivery.

    Attributes:
        refs: paths of references whose values the task receives.
        keep: paths of references that stay references: in callbacks, chains, and chords.
        within: paths of arguments whose signatures contain references; only in pickled messages.
        also: wire texts of further references, which need no path.
        key: fingerprint of the key that signed the short references; empty: there are none.
        mark: random text in each dict that `marked_refs` put in place of a reference; empty: there
            are none.
        holds: the name by which the message holds its values; empty: it holds none.
        until: when its values may expire, in seconds since 1970; None: unknown.
        since: for a part of a chord, when the chord began, in seconds since 1970.
        attempt: how many times the message was sent again because of a store outage.
        waits: how many times it was sent again because an equal call was computing.
        errbacks: error callbacks that contain references; workers without this library must not
            call them.
        call: the options given with the call.
    """

    refs: Sequence[Path] = ()
    keep: Sequence[Path] = ()
    within: Sequence[Path] = ()
    also: Sequence[str] = ()
    key: str = ""
    mark: str = ""
    holds: str = ""
    until: float | None = None
    since: float | None = None
    attempt: int = 0
    waits: int = 0
    errbacks: Sequence[Any] = ()
    call: TaskOptions = field(default=_NO_OPTIONS)

    @classmethod
    def read(cls, data: Any) -> Note:
        """Parse the note *data* of a message.

        Raises:
            UnsupportedVersion: a newer offload wrote it.
            InvalidRef: it is malformed.
        """
        version = data.get("v") if isinstance(data, dict) else None
        if type(version) is not int:
            raise _malformed()
        if version > NOTE_VERSION:
            raise UnsupportedVersion(
                f"a message of version {version} arrived, this offload reads up to "
                f"{NOTE_VERSION}; upgrade offload on workers before publishers"
            )
        until, since = data.get("until"), data.get("since")
        errbacks = data.get("errbacks", ())
        holds, also, refs = data.get("holds", ""), data.get("also", ()), data.get("refs", ())
        attempt, waits = data.get("attempt", 0), data.get("waits", 0)
        mark = data.get("mark", "")
        if not (
            isinstance(holds, str)
            and isinstance(mark, str)
            and data.get("k", "") == (key := _key_in(data))
            and isinstance(errbacks, (list, tuple))
            and isinstance(also, (list, tuple))
        ):
            raise _malformed()
        for count in (attempt, waits):
            if type(count) is not int or count < 0:
                raise _malformed()
        for at in (until, since):
            if at is not None and (type(at) is not int or abs(at) >= _LATEST):
                raise _malformed()
        if key:
            refs = [_whole_path(path) for path in refs] if isinstance(refs, (list, tuple)) else refs
            also = [expand(text, key) if isinstance(text, str) else text for text in also]
        errbacks = whole_refs(errbacks, key, mark)
        for text in also:
            if not (isinstance(text, str) and has_wire_form(text)):
                raise _malformed()
        try:
            call = TaskOptions.read(data.get("call"), "message")
        except Exception as exc:
            raise _malformed() from exc
        return cls(
            refs=_paths(refs, _ARGUMENTS),
            keep=_paths(data.get("keep", ()), _ROOTS),
            within=_paths(data.get("within", ()), _ARGUMENTS),
            also=also,
            key=key,
            mark=mark,
            holds=holds,
            until=None if until is None else float(until),
            since=None if since is None else float(since),
            attempt=attempt,
            waits=waits,
            errbacks=errbacks,
            call=call,
        )

    def write(self) -> dict[str, Any]:
        """Return the data that `read` parses."""
        version = _SHORT_REFS if self.key else _LONG_REFS
        version = NOTE_VERSION if self.mark else version
        data: dict[str, Any] = {"v": version, "refs": list(self.refs), "keep": list(self.keep)}
        also = self.also
        if self.key:
            data["k"] = self.key
            data["refs"] = [_short_path(path) for path in self.refs]
            also = [shorten(text, self.key) for text in also]
        parts = {"within": self.within, "holds": self.holds, "also": also, "mark": self.mark}
        data.update({name: part for name, part in parts.items() if part})
        if self.until is not None:
            data["until"] = int(self.until)
        if self.since is not None:
            data["since"] = int(self.since)
        for name in ("attempt", "waits"):
            if count := getattr(self, name):
                data[name] = count
        if self.call is not _NO_OPTIONS:
            call = {key: value for key, value in asdict(self.call).items() if value is not None}
            if call:
                data["call"] = call
        if self.errbacks:
            data["errbacks"] = self.errbacks
        return data


def _paths(data: Any, roots: frozenset[str]) -> Sequence[Path]:
    if not isinstance(data, (list, tuple)):
        raise _malformed()
    for path in data:
        if (
            not isinstance(path, (list, tuple))
            or not 2 <= len(path) <= LONGEST_PATH
            or not isinstance(path[0], str)
            or path[0] not in roots
            or not _PARTS.issuperset(map(type, path))
            or (path[0] == "args" and type(path[1]) is int and path[1] < 0)
        ):
            raise _malformed()
    return data


def is_argument(path: Path) -> bool:
    """Return whether *path* leads to an argument as functions have them."""
    return len(path) > 1 and type(path[1]) is _KEYS.get(path[0])


def _short_path(path: Path) -> Any:
    """Return the path of an argument without its root, which the type of the next key reveals.

    A path of one key becomes that key.
    """
    _, *rest = path
    return rest if len(rest) > 1 else rest[0]


def _whole_path(path: Any) -> Any:
    keys = path if isinstance(path, (list, tuple)) else [path]
    return ["args" if keys and type(keys[0]) is int else "kwargs", *keys]


def marked_refs(value: Any, mark: str) -> Any:
    """Return *value* with a dict in place of each Ref, which can be unpickled without this library.

    It is an OrderedDict, which is rare in arguments, so `whole_refs` finds it quickly. *mark*
    distinguishes it from a user's data.
    """

    def marked(ref: Ref[Any]) -> OrderedDict[str, str]:
        return OrderedDict({MESSAGE_KEY: ref.wire, _MARK: mark})

    return replace_refs(value, marked)


def whole_refs(value: Any, key: str, mark: str) -> Any:
    """Restore the references in *value*, unverified, from marked dicts and short forms.

    Args:
        key, mark: `Note.key` and `Note.mark` of the message.
    """

    def unmarked(each: OrderedDict[Any, Any]) -> Any:
        found, text = each.get(_MARK), each.get(MESSAGE_KEY)
        if isinstance(found, str) and found == mark and isinstance(text, str):
            return Ref.unbound(text)
        return each

    def whole(ref: Ref[Any]) -> Ref[Any]:
        text = expand(ref.wire, key)
        return ref if text == ref.wire else Ref.unbound(text)

    if mark:
        value = replace_refs(value, unmarked, OrderedDict)
    return replace_refs(value, whole) if key else value


def _key_in(data: Any) -> str:
    """Return the key of the short references in a message with the note *data*; "" if none."""
    key = data.get("k") if isinstance(data, dict) else None
    return key if isinstance(key, str) and KEY_FORM.fullmatch(key) else ""


def text_in(node: Any, key: str) -> str | None:
    """Return the wire text, unverified, of a reference in a message; None if it is data.

    Args:
        key: `Note.key` of the message.
    """
    text = wire_text(node)
    return expand(text, key) if text else text


def _malformed() -> InvalidRef:
    return InvalidRef("the message's note on references is malformed; offload did not write it")


def own_name(headers: Any) -> str | None:
    """Return the task that a message naming `STAND_IN` is for; None if it is for `STAND_IN`."""
    header = headers.get(HEADER)
    name = header.get("task") if isinstance(header, dict) else None
    if headers.get("task") != STAND_IN or name == STAND_IN:
        return None
    return name if isinstance(name, str) else None


def task_holder(task_id: Any, message: str = "") -> str:
    """Return the holder of the values in one message of a task; without *message*, of values kept
    for a task that has no message yet (a chord's body).

    A task can have several messages under way: retries, its replacement, calls with a given id.
    None of them may release values that another needs.
    """
    return holder("task", f"{task_id}+{message}" if message else task_id)


def message_name(waits: float | None = None) -> str:
    """Return a new name for a message.

    The name tells `waits_of` for how many seconds the message may wait for its task to start:
    *waits*, or None if it expires by itself.
    """
    name = secrets.token_hex(6)
    return name if waits is None else f"{name}.{waits:.0f}"


def waits_of(held_by: str) -> float | None:
    """Return for how many seconds a holder's message may wait; None if it isn't known."""
    task, _, message = held_by.rpartition("+")
    seconds = message.partition(".")[2] if task.startswith("task:") else ""
    return float(seconds) if seconds.isdecimal() else None


def body_of(request: Any) -> Any:
    """Return the task id of the body of the chord that *request* is a part of; None if it isn't."""
    return ((request.chord or {}).get("options") or {}).get("task_id")


def refs_to_prefetch(
    args: Sequence[Any], kwargs: Mapping[str, Any], note: Any, facts: TaskFacts
) -> list[str]:
    """Return the wire texts, unverified, of the references whose values a message's task receives.

    Raises InvalidRef if *note* doesn't describe the message.
    """
    read = Note.read(note)
    found: list[str] = []

    def collect(node: Any, _path: Path) -> Any:
        text = text_in(node, read.key)
        if text is not None:
            found.append(text)
        return node

    paths = [path for path in read.refs if not facts.asks_at(path)]
    replace_each({"args": args, "kwargs": kwargs}, paths, collect)
    return found


def restore_refs(parts: dict[str, Any], data: Any) -> tuple[dict[str, Any], str, list[str]]:
    """Replace references in a message's *parts* by unverified Refs, as its note *data* says.

    For a message that isn't executed here but ended or sent again (its task was killed, revoked,
    or expired): its references are passed on as they are, and nothing is fetched. Never raises,
    even for a malformed message.

    Returns the parts, the name by which the message holds values, and their wire texts.
    """
    try:
        note = Note.read(data)
        held = list(note.also)
        if note.errbacks:
            parts = {**parts, "errbacks": note.errbacks}
        root = {**parts, "kwargs": without_refusal(parts["kwargs"])}
        root = {name: whole_refs(part, note.key, note.mark) for name, part in root.items()}
        paths = [*note.refs, *note.keep]
        if not paths:
            return root, note.holds, held

        def restore(node: Any, _path: Path) -> Any:
            text = text_in(node, note.key)
            if text is None:
                return node
            held.append(text)
            return Ref.unbound(text)

        return replace_each(root, paths, restore), note.holds, held
    except Exception:  # its task fails with the reason, if it is executed
        return {key: all_unverified(part, data) for key, part in parts.items()}, "", []


def all_unverified(value: Any, data: Any) -> Any:
    """Replace everything in *value* that has the form of a reference by an unverified Ref.

    Args:
        data: the note of the message that *value* is from. It may be malformed.
    """
    return _all_unverified(value, _key_in(data), _DEEPEST, {})


def _all_unverified(value: Any, short: str, depth: int, copies: dict[tuple[int, int], Any]) -> Any:
    text = text_in(value, short)
    if text is not None:
        return Ref.unbound(text)
    if not depth or type(value) not in (dict, list, tuple):
        return value
    at = id(value), depth  # a container may occur again, or contain itself
    if at not in copies:
        items = value.values() if type(value) is dict else value
        found = [_all_unverified(item, short, depth - 1, copies) for item in items]
        copies[at] = (
            dict(zip(value, found, strict=True)) if type(value) is dict else type(value)(found)
        )
    return copies[at]


def as_lost(value: Any, error: Exception) -> Any:
    """Replace each Ref in *value* by a `LostValue`."""
    return replace_refs(value, lambda ref: LostValue.of(ref, error))


def as_wire(value: Any) -> Any:
    """Replace each Ref in *value* by its wire form."""
    return replace_refs(value, Ref.__json__)


def wire_form(ref: Ref[Any], serializer: str) -> Any:
    """Return the form of *ref* in data that Celery's *serializer* writes.

    JSON's registered type and pickle's import both fail, loudly, where this library is missing.
    """
    return Ref.unbound(ref.wire) if serializer == "pickle" else ref.__json__()


def without_refusal(kwargs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return keyword arguments without the one that workers without this library refuse."""
    names = (REFUSAL,) if REFUSAL in kwargs else _EARLIER_REFUSALS
    return {key: value for key, value in kwargs.items() if key not in names}


def no_path_error(task: str, argument: str, value: object) -> SerializationError:
    where = f"in a {type_name(value)}: put them into a list, tuple, or dict, or pass the values"
    return _cannot_send(task, argument, where)


def cycle_error(task: str, argument: str, value: object) -> SerializationError:
    return _cannot_send(task, argument, f"in a {type_name(value)} that contains itself")


def depth_error(task: str, argument: str) -> SerializationError:
    where = f"that are nested so deeply: a path to one has at most {LONGEST_PATH} keys"
    return _cannot_send(task, argument, where, shown=f"{argument:.100}…")


def _cannot_send(task: str, argument: str, where: str, shown: str = "") -> SerializationError:
    return SerializationError(
        f"task {task!r}, {shown or argument}: cannot send references {where}",
        task=task,
        argument=argument,
    )


def check_paths(task: str, argument: str, value: object) -> None:
    """Raise SerializationError if *value* has a Ref or LostValue that no path leads to."""
    container = container_without_paths(value, (Ref, LostValue))
    if container is not None:
        raise no_path_error(task, argument, container)


def described(
    exc: OffloadError,
    task: str,
    argument: str | None,
    *,
    digest: str | None = None,
    store: str | None = None,
) -> OffloadError:
    """Return a copy of *exc* that names the task and argument; *exc* itself if it names a task.

    *digest* and *store* are used where *exc* has none.
    """
    if exc.task is not None:
        return exc
    where = f"task {task!r}" if argument is None else f"task {task!r}, {argument}"
    new = type(exc)(
        f"{where}: {exc}",
        task=task,
        argument=argument,
        digest=exc.digest or digest,
        store=exc.store or store,
        **({"key": exc.key} if isinstance(exc, KeyUnavailable) else {}),
    )
    new.__cause__ = exc
    return new
