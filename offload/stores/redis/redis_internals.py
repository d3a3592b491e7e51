"""redis-py: the undocumented parts that stores use, of connections and pools.

`tests/stores/test_redis_internals.py` checks them against the installed redis-py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import redis
from redis.connection import PythonRespSerializer
from redis.exceptions import RedisError, ResponseError

__all__ = ("Command", "Packer", "database_of", "exchange", "refusal", "send")

Command = Sequence[Any]
Packer = PythonRespSerializer
"""The class that packs commands where hiredis doesn't. It has `pack` and `encode`."""

# Before 5.3, the pool required the command; later versions warn about it.
_COMMAND = ("_",) if tuple(map(int, redis.__version__.split(".")[:2])) < (5, 3) else ()

_REFUSES = 1.0  # seconds for a server to refuse a string by its length


def database_of(client: Any) -> int:
    """Return the number of the database that a client's connections select."""
    return int(client.connection_pool.connection_kwargs.get("db") or 0)


def exchange(pool: Any, commands: Sequence[Command]) -> list[Any]:
    """Send *commands* on one connection and return their answers, errors among them.

    redis-py's pipeline would give a connection back to the pool with answers still to come
    when something else interrupts it half way (as Celery's soft time limit does), and the
    next call would take them for its own. Here such a connection is closed.
    """
    return send(pool, commands)()


def send(pool: Any, commands: Sequence[Command]) -> Callable[[], list[Any]]:
    """Send *commands* as `exchange` does; return a function that returns their answers.

    It must be called once, in this process: until then, nobody else can use the connection.
    """
    connection = pool.get_connection(*_COMMAND)
    try:
        connection.send_packed_command(connection.pack_commands(commands))
    except BaseException:
        connection.disconnect()
        pool.release(connection)
        raise

    def receive() -> list[Any]:
        answers: list[Any] = []
        try:
            while len(answers) < len(commands):
                try:
                    answers.append(connection.read_response())
                except ResponseError as exc:
                    answers.append(exc)
        finally:
            if len(answers) < len(commands):
                connection.disconnect()
            pool.release(connection)
        return answers

    return receive


def refusal(pool: Any, length: int) -> str | None:
    """Return the server's reply to the announced length of a string, in bytes, if it sends one.

    It breaks the connection while the string is still being sent, so its answer is lost then.
    """
    with suppress(RedisError, OSError):
        connection = pool.get_connection(*_COMMAND)
        try:
            connection.send_packed_command([b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$%d\r\n" % length])
            if connection.can_read(timeout=_REFUSES):
                connection.read_response()
        except ResponseError as exc:
            return str(exc)
        finally:
            connection.disconnect()
            pool.release(connection)
    return None
