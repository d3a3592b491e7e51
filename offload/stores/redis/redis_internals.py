"""redis-py: the undocumented parts that stores use, of connections, their packers, and pools.

`tests/stores/test_redis_internals.py` checks them against the installed redis-py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import hiredis
import redis
from redis.connection import ConnectionPool, PythonRespSerializer
from redis.exceptions import RedisError, ResponseError

from offload.stores.protocols import Parts

Command = Sequence[Any]
Packer = PythonRespSerializer
"""redis-py's class that packs commands unless hiredis does; it has `pack` and `encode`."""
_pack_in_c: Callable[[Command], bytes] | None = getattr(hiredis, "pack_command", None)
"""hiredis's function that packs a tuple of strings, numbers, and bytes; None before hiredis 2.1."""

# Before 5.3, the pool required the command as an argument; later versions warn about it.
_COMMAND = ("_",) if tuple(map(int, redis.__version__.split(".")[:2])) < (5, 3) else ()

UNLIMITED = 1 << 31
"""``max_connections`` for a pool without a limit. Since redis-py 8, the default is 100."""

_REFUSES = 1.0  # seconds to wait for a server to refuse a string because of its length


def database_of(client: Any) -> int:
    """Return the number of the database that a client uses."""
    return int(client.connection_pool.connection_kwargs.get("db") or 0)


class Pool(ConnectionPool):
    """redis-py's connection pool, with one idle connection kept at hand.

    This avoids most of the overhead of lending a connection (sets, locks, events, and metrics),
    which is a fifth of the time of a short command. A pool that renews passwords when connections
    return doesn't keep one.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._may_spare = not options.get("credential_provider")
        self._spare: list[Any] = []

    def get_connection(self, *args: Any, **options: Any) -> Any:
        """Lend a connection to redis-py's own calls; the spare one first."""
        with suppress(IndexError):
            self.release(self._spare.pop())
        return super().get_connection(*args, **options)

    def borrow(self) -> Any:
        """Return a connection that is ready for a command."""
        try:
            connection = self._spare.pop()  # atomic, so no other thread gets it
        except IndexError:
            return self.get_connection(*_COMMAND)
        try:
            # The checks of `get_connection`, with fewer calls. A disconnected parser raises.
            if not connection._parser.can_read(0):
                return connection
        except (RedisError, OSError):
            pass
        except BaseException:
            self.release(connection)
            raise
        connection.disconnect()
        self.release(connection)
        return self.get_connection(*_COMMAND)

    def give_back(self, connection: Any) -> None:
        """Return a connection from `borrow`, with nothing left to read."""
        if self._may_spare and not self._spare:
            self._spare.append(connection)
        else:
            self.release(connection)


def has_spare(pool: Any) -> bool:
    """Return whether a connection may be borrowed for longer than a command.

    It may if the pool has an idle one and most of its limit is unused.
    """
    used, idle = (getattr(pool, f"_{kind}_connections", None) for kind in ("in_use", "available"))
    return bool(idle) and used is not None and len(used) < pool.max_connections // 4


def send(pool: Any, commands: Sequence[Command]) -> Callable[..., list[Any]]:
    """Send *commands* on one connection; return a function that returns the replies with errors.

    Call that function once, in this process: until then, nothing else can use the connection. If it
    gets a timeout in seconds, it returns an empty list if no reply arrives in time.

    If something interrupts redis-py's pipeline, such as Celery's soft time limit, it returns the
    connection to the pool with replies pending, and the next call takes them for its own. This
    function closes such a connection instead.
    """
    own = pool if hasattr(pool, "borrow") else None  # isinstance is slow for abstract classes
    connection = pool.get_connection(*_COMMAND) if own is None else own.borrow()
    try:
        if len(commands) == 1:  # a single command is already joined
            packed = connection.pack_command(*commands[0])
        else:
            packed = connection.pack_commands(commands)
        connection.send_packed_command(packed)
    except BaseException:
        connection.disconnect()
        pool.release(connection)
        raise

    def receive(patience: float | None = None) -> list[Any]:
        answers: list[Any] = []
        try:
            if patience is not None and not connection.can_read(timeout=patience):
                return answers
            while len(answers) < len(commands):
                try:
                    answers.append(connection.read_response())
                except ResponseError as exc:
                    answers.append(exc)
        finally:
            if len(answers) < len(commands):
                connection.disconnect()
                pool.release(connection)
            elif own is None:
                pool.release(connection)
            else:
                own.give_back(connection)
        return answers

    return receive


def refusal(pool: Any, length: int) -> str | None:
    """Announce a string of *length* bytes, and return the server's error if it refuses; else None.

    A server that refuses a string breaks the connection while it is being sent, which loses the
    error.
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


# -- packing blobs without joining or copying them

_SMALL = 6000  # bytes up to which redis-py joins what it sends
_JOINED = 1 << 16  # bytes of a command up to which one copy is cheaper than several sends
_WITH_BULK = frozenset({"SET"})  # commands that may have a `Bulk`
_PIECE = 1 << 20  # bytes sent by one call, each with the socket's timeout for itself


class Bulk:
    """One argument of a command, made of several buffers.

    Attributes:
        size: bytes of all buffers together.
    """

    __slots__ = ("pieces", "size")

    def __init__(self, parts: Parts) -> None:
        self.size = 0
        self.pieces: list[bytes | memoryview] = []
        for part in parts:
            view = memoryview(part).cast("B")
            self.size += len(view)
            if len(view) <= _SMALL:
                self.pieces.append(bytes(view))
            else:
                self.pieces += [view[at : at + _PIECE] for at in range(0, len(view), _PIECE)]

    def __repr__(self) -> str:
        return f"<{self.size} bytes>"


class _PartsPacker(Packer):
    """redis-py's own packer, which also takes `Bulk` arguments, and packs others in C. It keeps no
    state.
    """

    def pack(self, *args: Any) -> list[bytes | memoryview]:
        if type(args[0]) is not str or " " in args[0]:  # several words, which only redis-py sends
            packed: list[bytes | memoryview] = super().pack(*args)  # type: ignore[no-untyped-call]
            return packed
        if _pack_in_c is not None and args[0] not in _WITH_BULK:
            return [_pack_in_c(args)]
        output: list[bytes | memoryview] = []
        joined = [b"*%d\r\n" % len(args)]
        for arg in args:
            if type(arg) is Bulk:
                output.append(b"%b$%d\r\n" % (b"".join(joined), arg.size))
                output += arg.pieces
                joined = [b"\r\n"]
            else:
                data = arg if type(arg) is bytes else str(arg).encode()
                joined.append(b"$%d\r\n%b\r\n" % (len(data), data))
        output.append(b"".join(joined))
        if len(output) > 1 and sum(map(len, output)) <= _JOINED:
            return [b"".join(output)]
        return output


def _encode(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


PACKER = _PartsPacker(_SMALL, _encode)
