"""Query workers through Celery's remote control, bounded in time and size."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from celery import Celery
from kombu.pidbox import Mailbox

from offload.content.signing import stored_keys
from offload.errors import OffloadError
from offload.hooks.control import state_of
from offload.hooks.runtime import Runtime
from offload.ref import Keys

State = Literal["connected", "without", "silent", "unreadable"]
"""State of a worker. ``connected``: its app uses offload; ``without``: it doesn't; ``silent``: it
answers pings but sent no reply; ``unreadable``: its reply is malformed."""

HERE = "this process"
MOST = 500
"""Maximum number of workers whose replies are read."""

_COMMAND = "offload"
_MEMORY = "memory"
_CONNECT_TIMEOUT = 5.0  # seconds
_MAX_NAME = 255  # characters
_MAX_TEXT = 500
_MAX_ITEMS = 2000  # items of one worker's reply
_MAX_DEPTH = 4


@dataclass(frozen=True)
class Worker:
    """A worker, or this process, as it describes itself. Its text is untrusted.

    Attributes:
        name: its node name.
        state: see `State`.
        reply: what `offload.hooks.control.state_of` returned there, cut to a bounded size; empty
            unless *state* is ``connected``.
        reason: why *state* isn't ``connected``, as text for people.
    """

    name: str
    state: State
    reply: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

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
        pid = self.reply.get("pid")
        return pid if type(pid) is int else None

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its settings, except secrets."""
        return self.mapping("settings")

    @property
    def cache(self) -> Mapping[str, Any]:
        """Its node cache: ``folder``, ``values``, ``bytes``, ``limit``; empty if it has none."""
        return self.mapping("cache")

    @property
    def counters(self) -> Mapping[str, Any]:
        """The counters of its main process."""
        return self.mapping("counters")

    def text(self, name: str) -> str:
        """Return a text from its reply; "" if there is none."""
        text = self.reply.get(name)
        return text if isinstance(text, str) else ""

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Return a mapping from its reply; empty if there is none."""
        mapping = self.reply.get(name)
        return mapping if isinstance(mapping, dict) else {}


@dataclass(frozen=True)
class Workers:
    """The replies of workers.

    Attributes:
        at: when they were queried, in seconds since 1970.
        workers: sorted by name, at most `MOST`.
        note: why *workers* is empty or incomplete; else "".
    """

    at: float
    workers: tuple[Worker, ...]
    note: str = ""


def ask_workers(app: Celery, *, timeout: float = 1.0) -> Workers:
    """Query the workers on *app*'s broker for their settings.

    Takes *timeout* seconds if all reply, and at most twenty times that. Doesn't raise: if the
    broker is unavailable or no worker replies, the note says so.
    """
    began = time.time()
    try:
        note = _reason_not_askable(app)
        alive, replies = ({}, {}) if note else _ask(app, timeout)
    except Exception as exc:  # each transport raises errors of its own
        return Workers(began, (), f"can't query the broker: {type(exc).__name__}: {exc}")
    workers = tuple(_worker(name, replies) for name in sorted(alive))
    if not workers:
        note = note or f"no worker replied within {timeout:g} s"
    elif len(workers) == MOST:
        note = f"there are more than {MOST} workers: the others weren't queried"
    return Workers(began, workers, note)


def this_process(runtime: Runtime) -> Worker:
    """Describe this process as workers describe themselves.

    Makes one round trip to read the store's key, which is omitted if the store is unavailable.
    """
    try:
        kept = stored_keys(runtime.store.pointers) or Keys(())  # none yet
    except OffloadError:  # other checks report problems of the store
        kept = None
    return Worker(HERE, "connected", state_of(runtime, kept))


def _ask(app: Celery, timeout: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the replies to ``ping`` and to offload's own command."""
    with Remote.connected(app) as remote:
        alive = remote.ask("ping", timeout=timeout)
        return alive, remote.ask(_COMMAND, timeout=timeout, workers=list(alive)) if alive else {}


def _worker(name: str, replies: Mapping[str, Any]) -> Worker:
    if name not in replies:
        return Worker(name, "silent", reason="it is alive, but didn't reply in time")
    reply = _Bounded().cut(replies[name])
    if not isinstance(reply, dict):
        return Worker(name, "unreadable", reason=f"its reply is a {type(reply).__name__}")
    if not reply:
        return Worker(name, "without", reason="its app isn't connected with Offload(app)")
    error = reply.get("error")
    if isinstance(error, str):
        if "KeyError" in error and _COMMAND in error:
            reason = "it doesn't know the command: offload isn't installed there"
            return Worker(name, "without", reason=reason)
        return Worker(name, "unreadable", reason=error)
    return Worker(name, "connected", reply)


class _Bounded:
    """Cuts a reply to a size that can be kept and shown."""

    def __init__(self) -> None:
        self._left = _MAX_ITEMS

    def cut(self, value: Any, depth: int = 0) -> Any:
        self._left -= 1
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int):
            return value if abs(value) < 1 << 63 else "a number"
        if isinstance(value, str):
            return _text(value)
        if depth < _MAX_DEPTH and isinstance(value, dict):
            items = zip(value.items(), range(max(self._left, 0)), strict=False)
            return {_text(str(key)): self.cut(each, depth + 1) for (key, each), _ in items}
        if depth < _MAX_DEPTH and isinstance(value, (list, tuple)):
            return [
                self.cut(each, depth + 1)
                for each, _ in zip(value, range(max(self._left, 0)), strict=False)
            ]
        return f"a {type(value).__name__}"


def _text(text: str) -> str:
    """Shorten *text*, and drop characters that UTF-8 can't encode."""
    return text[:_MAX_TEXT].encode("utf-8", "replace").decode()


# -- remote control


def _reason_not_askable(app: Celery) -> str:
    """Return why workers of *app* can't be queried; "" if they can. Doesn't connect."""
    if not app.conf.worker_enable_remote_control:
        return "worker_enable_remote_control is off, so workers don't reply"
    connection = app.connection_for_write()
    if connection.transport.driver_type == _MEMORY:
        return "the broker is in this process's memory, where no worker can reach it"
    if not connection.supports_exchange_type("fanout"):
        return f"a {connection.transport.driver_name} broker doesn't support remote control"
    return ""


@contextmanager
def connected(app: Celery) -> Iterator[Any]:
    """Yield a connection to the broker of *app*.

    Tries once, for a few seconds; raises the driver's error if the broker is unavailable.
    """
    connection = app.connection_for_write(connect_timeout=_CONNECT_TIMEOUT)
    if connection.transport.driver_type == "redis":
        for option in ("socket_timeout", "socket_connect_timeout"):
            connection.transport_options.setdefault(option, _CONNECT_TIMEOUT)
    connection.ensure = partial(connection.ensure, max_retries=1)
    with connection:
        connection.ensure_connection(max_retries=1, interval_start=0)
        yield connection


class Remote:
    """Sends commands to workers over a connection opened by `connected`.

    The app's connection would retry an unavailable broker forever.
    """

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    @classmethod
    @contextmanager
    def connected(cls, app: Celery) -> Iterator[Remote]:
        """Connect to the broker of *app*; raises its driver's error if it is unavailable."""
        with connected(app) as connection:
            yield cls(_mailbox(app, connection))

    def ask(
        self, command: str, *, timeout: float, workers: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Return the replies of workers by name. Anyone who can write to the broker can forge one.

        Returns once all *workers* have replied, or no reply came for *timeout* seconds, or ten
        times *timeout* have passed.

        Args:
            command: the command's name.
            timeout: in seconds.
            workers: names of the workers to query; None queries all.
        """
        replies: dict[str, Any] = {}
        deadline = time.monotonic() + 10 * timeout

        def take(message: Any) -> None:
            if isinstance(message, dict):
                for name, reply in message.items():
                    if _is_name(name) and (name in replies or len(replies) < MOST):
                        replies[name] = reply
            if time.monotonic() > deadline:
                raise _DeadlineExceeded

        options = {"timeout": timeout, "callback": take}
        with suppress(_DeadlineExceeded):
            if workers is None:
                self._mailbox.multi_call(command, limit=MOST, **options)
            else:
                self._mailbox.call(list(workers), command, **options)
        return replies


def _is_name(name: object) -> bool:
    """Return whether *name* is a valid worker name, as replies are untrusted."""
    return isinstance(name, str) and len(name) <= _MAX_NAME and name.isprintable()


class _DeadlineExceeded(Exception):
    """The deadline for replies has passed."""


def _mailbox(app: Celery, connection: Any) -> Any:
    conf = app.conf
    return Mailbox(
        conf.control_exchange,
        type="fanout",
        accept=conf.accept_content,
        serializer=conf.task_serializer,
        connection=connection,
        reply_queue_ttl=conf.control_queue_ttl,
        reply_queue_expires=conf.control_queue_expires,
    )
