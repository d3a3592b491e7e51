"""Giving up what a message held, once nobody can need it for that message any more.

Only what is certain counts. A message that went to a dead letter queue, or of which other
workers may have copies, gives nothing up here: its values end by their retention.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from celery import states
from kombu.transport import virtual

from offload.errors import OffloadError
from offload.forks import guard_forks
from offload.hooks.runtime import Runtime
from offload.ref import Ref
from offload.stores.processes import PerProcess

__all__ = (
    "Releaser",
    "has_ended",
    "is_done",
    "is_only_copy",
    "release",
)

logger = logging.getLogger(__name__)

_FINAL = frozenset({states.SUCCESS, states.FAILURE, states.RETRY, states.IGNORED, states.REVOKED})
_WAITING = 10_000  # releases that wait for the thread; what is more ends by its retention


def is_done(app: Any, task: Any, state: str, delivery_info: Mapping[str, Any] | None) -> bool:
    """Return whether the message of a task that ended in *state* can't be delivered again, here
    or to another consumer. May ask the broker.
    """
    return has_ended(task, state) and is_only_copy(app, delivery_info)


def has_ended(task: Any, state: str) -> bool:
    """Return whether a message that ended in *state* is neither requeued nor dead-lettered.

    A retry is another message, with holds of its own.
    """
    if state not in _FINAL:
        return False
    return not (state == states.FAILURE and task.acks_late and not _acks_failures(task))


def _acks_failures(task: Any) -> bool:
    names = ("acks_on_failure_or_timeout", "acks_on_failure", "acks_on_timeout")
    return all(getattr(task, name, True) is not False for name in names)


def is_only_copy(app: Any, delivery_info: Mapping[str, Any] | None) -> bool:
    """Return whether a message certainly went to a single queue.

    The default exchange delivers to the queue it names. A named direct exchange delivers to
    every queue bound by the routing key, and other services may have bound theirs: only the
    broker knows. Fanout and topic exchanges are never certain.
    """
    exchange = (delivery_info or {}).get("exchange")
    if not exchange:
        return exchange == ""
    queues = list(app.amqp.queues.values())  # threads that publish may add some
    kinds = {
        bound.exchange.type
        for each in queues
        for bound in (each, *(each.bindings or ()))
        if bound.exchange is not None and bound.exchange.name == exchange
    }
    key = (delivery_info or {}).get("routing_key")
    return kinds == {"direct"} and _count_bound(app, exchange, key) == 1


def _count_bound(app: Any, exchange: str, key: Any) -> int | None:
    """Return how many queues the broker binds to *exchange* by *key*; None if it can't say.

    AMQP has no such question. Of kombu's virtual transports those can answer that share their
    bindings among processes (Redis, the file system, MongoDB).
    """
    try:
        with app.connection_or_acquire() as connection:
            connection.ensure_connection(max_retries=1)  # by default it tries for ever
            channel = connection.default_channel
            read = getattr(type(channel), "get_table", None)
            if read is None or read is virtual.Channel.get_table:
                return None
            return len({queue for bound, _, queue in read(channel, exchange) if bound == key})
    except Exception as exc:
        logger.info("the broker doesn't say which queues are bound to %r: %r", exchange, exc)
        return None


def release(runtime: Runtime, refs: Iterable[Ref[Any]], name: str) -> None:
    """Give up what *name* holds. What fails is counted: it ends by its retention.

    Nothing is raised, not even a time limit that is reached meanwhile: what a task did is
    known to others by then, and must not be reported as its failure.
    """
    try:
        runtime.content.holds.release(map(runtime.content.opened, refs), name, runtime.grace)
    except Exception as exc:
        runtime.counters.add(releases_failed=1)
        expected = isinstance(exc, OffloadError)
        logger.log(
            logging.INFO if expected else logging.WARNING,
            "%s keeps its values until they expire: %r",
            name,
            exc,
            exc_info=not expected,
        )


_Job = tuple[list[str], str, Mapping[str, Any] | None]


class Releaser:
    """Releases in a thread of its own, for a worker's main process, which must not wait.

    The thread is begun at the first need, in each process that has one.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._queues = PerProcess(self._begin)

    def submit(
        self, wires: Iterable[str], name: str, delivery_info: Mapping[str, Any] | None
    ) -> None:
        """Release what *name* holds of these references soon, unless other queues may have a
        copy of the message.
        """
        try:
            self._queues.get().put_nowait((list(wires), name, delivery_info))
        except (queue.Full, RuntimeError):  # or no more threads
            self._runtime.counters.add(releases_failed=1)

    def _begin(self) -> queue.Queue[_Job]:
        guard_forks()
        waiting: queue.Queue[_Job] = queue.Queue(_WAITING)
        threading.Thread(
            target=self._run, args=(waiting,), name="offload-release", daemon=True
        ).start()
        return waiting

    def _run(self, waiting: queue.Queue[_Job]) -> None:
        while True:
            wires, name, delivery_info = waiting.get()
            if is_only_copy(self._runtime.app, delivery_info):
                release(self._runtime, map(Ref.unbound, wires), name)
