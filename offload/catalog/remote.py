"""Asking workers by Celery's remote control, bounded in time and number."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from celery import Celery
from kombu.pidbox import Mailbox

__all__ = ("MOST", "Remote", "why_not")

MOST = 500
"""Workers whose answers are taken."""
_LONGEST_NAME = 255
_PATIENCE = 5.0  # seconds that the broker has to answer
_MEMORY = "memory"


def why_not(app: Celery) -> str:
    """Return why workers of *app* cannot be asked; "" if they can. Connects to nothing."""
    if not app.conf.worker_enable_remote_control:
        return "worker_enable_remote_control is off, so workers answer nothing"
    connection = app.connection_for_write()
    if connection.transport.driver_type == _MEMORY:
        return "the broker is this process's own memory, where no worker is"
    if not connection.supports_exchange_type("fanout"):
        return f"a broker of {connection.transport.driver_name} carries no remote control"
    return ""


class Remote:
    """Asks over a connection of its own, which `connected` opens.

    The app's own would try for ever to reach a broker that is away.
    """

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    @classmethod
    @contextmanager
    def connected(cls, app: Celery) -> Iterator[Remote]:
        """Connect to the broker of *app*; raises what its driver raises if it is away."""
        connection = app.connection_for_write(connect_timeout=_PATIENCE)
        if connection.transport.driver_type == "redis":
            for option in ("socket_timeout", "socket_connect_timeout"):
                connection.transport_options.setdefault(option, _PATIENCE)
        connection.ensure = partial(connection.ensure, max_retries=1)
        with connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
            yield cls(_mailbox(app, connection))

    def ask(
        self, command: str, *, timeout: float, workers: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Return what workers answer, by their names: plain data of whoever can write to the
        broker.

        It ends when all of *workers* have answered, when none did for *timeout* seconds, or
        after ten times that.
        """
        found: dict[str, Any] = {}
        late = time.monotonic() + 10 * timeout

        def take(answer: Any) -> None:
            if isinstance(answer, dict):
                for name, told in answer.items():
                    if _is_name(name) and (name in found or len(found) < MOST):
                        found[name] = told
            if time.monotonic() > late:
                raise _Late

        options = {"timeout": timeout, "callback": take}
        with suppress(_Late):
            if workers is None:
                self._mailbox.multi_call(command, limit=MOST, **options)
            else:
                self._mailbox.call(list(workers), command, **options)
        return found


def _is_name(name: object) -> bool:
    """Whether workers may be called so: text, of which anything else can be written, too."""
    return isinstance(name, str) and len(name) <= _LONGEST_NAME and name.isprintable()


class _Late(Exception):
    """There was time enough to answer."""


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
