"""What workers say of themselves: which there are, and what offload is set to in each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from celery import Celery

from offload.catalog.remote import MOST, Remote, why_not
from offload.content.signing import stored_keys
from offload.errors import OffloadError
from offload.hooks.control import NO_KEYS, state_of
from offload.hooks.runtime import Runtime

__all__ = ("Asked", "State", "Worker", "ask_workers", "this_process")

State = Literal["connected", "without", "silent", "unreadable"]
"""``connected``: it has offload; ``without``: it, or its app, has not; ``silent``: it lives and did
not say; ``unreadable``: it answered something else."""

HERE = "this process"

_COMMAND = "offload"
_LONGEST = 500  # characters of a text
_ITEMS = 2000  # of one worker's answer
_DEEPEST = 4


@dataclass(frozen=True)
class Worker:
    """A worker, or this process, as it describes itself. All texts are its own: data, not to
    be trusted.

    Attributes:
        name: its node name.
        told: what `offload.hooks.control.state_of` told there, cut to bounded size; empty unless
            *state* is ``connected``.
        why: for people, where it is not.
    """

    name: str
    state: State
    told: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""

    @property
    def version(self) -> str:
        return self.text("version")

    @property
    def app(self) -> str:
        """The name of its app."""
        return self.text("app")

    @property
    def store(self) -> str:
        """The URL of its store, without credentials."""
        return self.text("store")

    @property
    def pid(self) -> int | None:
        pid = self.told.get("pid")
        return pid if type(pid) is int else None

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its settings, but those that hold secrets."""
        return self.mapping("settings")

    @property
    def cache(self) -> Mapping[str, Any]:
        """``folder``, and ``values``, ``bytes`` and ``limit`` of its machine's node cache; empty
        where there is none.
        """
        return self.mapping("cache")

    @property
    def counters(self) -> Mapping[str, Any]:
        """What its main process counted."""
        return self.mapping("counters")

    def text(self, name: str) -> str:
        """Return a text that it told, "" if it did not."""
        told = self.told.get(name)
        return told if isinstance(told, str) else ""

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Return a mapping that it told, an empty one if it did not."""
        told = self.told.get(name)
        return told if isinstance(told, dict) else {}


@dataclass(frozen=True)
class Asked:
    """What was found by asking.

    Attributes:
        at: when, in seconds since 1970.
        workers: by name; `MOST` at most.
        note: why there are none, or not all; "" where there is nothing to say.
    """

    at: float
    workers: tuple[Worker, ...]
    note: str = ""


def ask_workers(app: Celery, *, timeout: float = 1.0) -> Asked:
    """Ask the workers of *app*'s broker what offload is set to in each.

    It takes *timeout* seconds where all answer, at most twenty times that. A broker that cannot
    be asked, or where nobody answers, is told in the note, and is no error.
    """
    began = time.time()
    try:
        note = why_not(app)
        alive, told = ({}, {}) if note else _ask(app, timeout)
    except Exception as exc:  # which of them is the transport's business
        return Asked(began, (), f"the broker could not be asked: {type(exc).__name__}: {exc}")
    workers = tuple(_worker(name, told) for name in sorted(alive))
    if not workers:
        note = note or f"no worker answered within {timeout:g} s"
    elif len(workers) == MOST:
        note = f"only {MOST} workers are looked at"
    return Asked(began, workers, note)


def _ask(app: Celery, timeout: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what workers answer to ``ping``, and those to our command."""
    with Remote.connected(app) as remote:
        alive = remote.ask("ping", timeout=timeout)
        return alive, remote.ask(_COMMAND, timeout=timeout, workers=list(alive)) if alive else {}


def _worker(name: str, answers: Mapping[str, Any]) -> Worker:
    if name not in answers:
        return Worker(name, "silent", why="it lives, and did not answer in time")
    told = _Bounded().cut(answers[name])
    if not isinstance(told, dict):
        return Worker(name, "unreadable", why=f"it answered a {type(told).__name__}")
    if not told:
        return Worker(name, "without", why="its app is not connected by Offload(app)")
    error = told.get("error")
    if isinstance(error, str):
        if "KeyError" in error and _COMMAND in error:
            return Worker(name, "without", why="it does not know the command: it has no offload")
        return Worker(name, "unreadable", why=error)
    return Worker(name, "connected", told)


def this_process(runtime: Runtime) -> Worker:
    """Return the same for this process. One round trip, for the key that the store keeps; it is
    left out if the store is unavailable.
    """
    try:
        kept = stored_keys(runtime.store.pointers) or NO_KEYS
    except OffloadError:  # what is wrong with the store is reported with the store
        kept = None
    return Worker(HERE, "connected", state_of(runtime, kept))


class _Bounded:
    """Cuts an answer to a size that can be kept and shown."""

    def __init__(self) -> None:
        self._left = _ITEMS

    def cut(self, value: Any, depth: int = 0) -> Any:
        self._left -= 1
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int):
            return value if abs(value) < 1 << 63 else "a number"
        if isinstance(value, str):
            return _text(value)
        if depth < _DEEPEST and isinstance(value, dict):
            items = zip(value.items(), range(max(self._left, 0)), strict=False)
            return {_text(str(key)): self.cut(each, depth + 1) for (key, each), _ in items}
        if depth < _DEEPEST and isinstance(value, (list, tuple)):
            return [
                self.cut(each, depth + 1)
                for each, _ in zip(value, range(max(self._left, 0)), strict=False)
            ]
        return f"a {type(value).__name__}"


def _text(text: str) -> str:
    """Return what of *text* can be kept and written as UTF-8."""
    return text[:_LONGEST].encode("utf-8", "replace").decode()
