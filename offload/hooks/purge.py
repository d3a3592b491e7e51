"""Purge queues: discard their messages and release the values they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kombu.entity import Queue
from kombu.exceptions import OperationalError

from offload.errors import StoreUnavailable
from offload.hooks.delivery import mark_refs
from offload.hooks.note import EMBED, Note
from offload.hooks.release import is_only_copy, release, task_holder
from offload.hooks.runtime import Runtime
from offload.ref import Ref

__all__ = ("RELEASED", "SHARED", "UNREADABLE", "WITHOUT", "Discarded", "purge")

RELEASED = "released"
SHARED = "shared"
UNREADABLE = "unreadable"
WITHOUT = "without"


@dataclass(frozen=True)
class Discarded:
    """A message that was taken from a queue.

    Attributes:
        holds: what became of its holds: ``released``; ``shared`` and ``unreadable`` ones expire
            by their time, as other queues may have a copy, or as the message is not one that
            this app reads; ``without`` any.
    """

    queue: str
    holds: str


def purge(runtime: Runtime, queues: Iterable[str]) -> Iterator[Discarded]:
    """Discard the messages that are in *queues* now, and yield each; a queue that doesn't exist
    has none. If interrupted, it has discarded the messages that it yielded.

    Raises StoreUnavailable if the broker is unavailable.
    """
    app = runtime.app
    with app.connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=1)
            for name in queues:
                for message in _messages(connection, name, app.conf.accept_content):
                    yield Discarded(name, _release(runtime, message))
        except (*connection.recoverable_connection_errors, OperationalError) as exc:
            raise StoreUnavailable(
                f"the broker {connection.as_uri()} is unavailable: {exc}"
            ) from exc


def _messages(connection: Any, name: str, accept: Any) -> Iterator[Any]:
    """Take messages from a queue and yield them; None for what isn't one."""
    channel = connection.channel()
    try:
        count = channel.queue_declare(name, passive=True).message_count
    except connection.channel_errors:
        return
    queue = Queue(name)(channel)
    for _ in range(count):  # and not what is published meanwhile
        try:
            message = queue.get(no_ack=True, accept=accept)
        except (ValueError, LookupError, TypeError, AttributeError):  # not of kombu's form
            yield None
            continue
        if message is None:
            return
        yield message


def _release(runtime: Runtime, message: Any) -> str:
    try:
        args, kwargs, embed = message.payload
        if EMBED not in embed:
            return WITHOUT
        Note.read(embed[EMBED])
        parts = {**embed, "args": args, "kwargs": kwargs}
        _, name, wires = mark_refs(parts, parts.pop(EMBED))
        task_id = message.headers["id"]
    except Exception:  # another protocol, a serializer that isn't accepted, a broken note
        return UNREADABLE
    if not (name and wires):
        return WITHOUT
    if not is_only_copy(runtime.app, message.delivery_info):
        return SHARED
    release(runtime, map(Ref.unbound, wires), task_holder(task_id, name))
    return RELEASED
