"""The note in a message that says which of its data are references, and who holds their values.

A message can be written by anybody. `Note.read` is the only reader of a note: it raises
InvalidRef for whatever this library would not have written, so that nothing behind it
meets a surprise, least of all in a worker's main process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from offload.errors import InvalidRef, UnsupportedVersion
from offload.hooks.paths import Path
from offload.ref import has_wire_form
from offload.settings import TaskOptions

__all__ = (
    "EMBED",
    "HEADER",
    "MALFORMED",
    "NOTE_VERSION",
    "REFUSAL",
    "REQUIRED",
    "STAND_IN",
    "Note",
    "own_name",
)

EMBED = "offload"
"""Key in the message's embed, beside ``callbacks`` and ``chain``: where references stand."""
STAND_IN = "celery.backend_cleanup"
"""The task that a message with references names in its header, for workers without this library.

Each worker has it, and it takes no arguments. So whatever parameters the task itself takes, such a
worker starts no function of the user's on references: the message fails as any task does, with
its error callbacks, and the error says why. The header `HEADER` has the task's own name.
"""
HEADER = "offload"
"""Message header for people and monitoring: how many references, how many bytes, which task."""
REFUSAL = (
    "__offload__: this task's arguments are in a store; install offload on this worker, "
    "and call Offload(app)"
)
"""A keyword argument that `STAND_IN` refuses by name, so that the error says what to do."""
REQUIRED = (REFUSAL, "__offload__", b"__offload__")
"""Keyword arguments that this and older releases add, and no task has."""
NOTE_VERSION = 2
"""Version of the note on references in a message: the one written, and the newest one read."""
MALFORMED = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What Celery raises for a chain, a chord, or callbacks in a message that are malformed. Where
that is raised in a worker's main process, the worker would end."""

_ROOTS = frozenset({"args", "kwargs", "callbacks", "errbacks", "chain", "chord"})
_ARGUMENTS = frozenset({"args", "kwargs"})
_LONGEST = 256  # keys of a path
_FAR = 1 << 53  # beyond any time
_NO_OPTIONS = TaskOptions.read(None, "message")


@dataclass(frozen=True)
class Note:
    """A note, checked.

    Attributes:
        refs: paths to references that the task gets the values of.
        keep: paths to references that stay references: in callbacks, chains, and chords.
        within: paths to arguments whose signatures hold references; such a message is pickled.
        also: wire texts of further references, which need no path.
        holds: the name by which the message holds its values; empty: it holds none.
        until: when its values may end, in seconds since 1970; None: it doesn't say.
        since: for a part of a chord, when that began, in seconds since 1970.
        attempt: how many times the message was sent again for a store outage.
        errbacks: error callbacks that hold references; workers without this library must not
            call them.
        call: the options given with the call.
    """

    refs: Sequence[Path] = ()
    keep: Sequence[Path] = ()
    within: Sequence[Path] = ()
    also: Sequence[str] = ()
    holds: str = ""
    until: float | None = None
    since: float | None = None
    attempt: int = 0
    errbacks: Sequence[Any] = ()
    call: TaskOptions = field(default=_NO_OPTIONS)

    @classmethod
    def read(cls, data: Any) -> Note:
        """Return the note that *data*, out of a message, is.

        Raises:
            UnsupportedVersion: a newer offload wrote it.
            InvalidRef: it is malformed.
        """
        version = data.get("v") if isinstance(data, dict) else None
        if type(version) is not int:
            raise _broken()
        if version > NOTE_VERSION:
            raise UnsupportedVersion(
                f"a message of version {version} arrived, this offload reads up to "
                f"{NOTE_VERSION}; upgrade offload on workers before publishers"
            )
        until, since = data.get("until"), data.get("since")
        errbacks = data.get("errbacks", ())
        holds, attempt, also = data.get("holds", ""), data.get("attempt", 0), data.get("also", ())
        if not (
            isinstance(holds, str)
            and isinstance(errbacks, (list, tuple))
            and type(attempt) is int
            and attempt >= 0
            and all(at is None or (type(at) is int and abs(at) < _FAR) for at in (until, since))
            and isinstance(also, (list, tuple))
            and all(isinstance(text, str) and has_wire_form(text) for text in also)
        ):
            raise _broken()
        try:
            call = TaskOptions.read(data.get("call"), "message")
        except Exception as exc:
            raise _broken() from exc
        return cls(
            refs=_paths(data.get("refs", ()), _ARGUMENTS),
            keep=_paths(data.get("keep", ()), _ROOTS),
            within=_paths(data.get("within", ()), _ARGUMENTS),
            also=also,
            holds=holds,
            until=None if until is None else float(until),
            since=None if since is None else float(since),
            attempt=attempt,
            errbacks=errbacks,
            call=call,
        )


def own_name(headers: Any) -> str | None:
    """Return which task a message is for that names `STAND_IN`; None if that is its own."""
    said = headers.get(HEADER)
    name = said.get("task") if isinstance(said, dict) else None
    return name if headers.get("task") == STAND_IN and isinstance(name, str) else None


def _paths(data: Any, roots: frozenset[str]) -> Sequence[Path]:
    if not isinstance(data, (list, tuple)):
        raise _broken()
    for path in data:
        if (
            not isinstance(path, (list, tuple))
            or not 2 <= len(path) <= _LONGEST
            or not isinstance(path[0], str)
            or path[0] not in roots
        ):
            raise _broken()
    return data


def _broken() -> InvalidRef:
    return InvalidRef("the message's note on references is malformed; offload did not write it")
