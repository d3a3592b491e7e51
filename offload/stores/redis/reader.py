"""Receiving a large blob straight into memory of its own.

hiredis copies what it is fed twice: into its buffer, and from there into a bytes object.
For an answer that is one large string that is most of a reader's work. (A Cluster's
connections have a parser of their own, which knows about moved slots; they keep it.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.connection import DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.utils import HIREDIS_AVAILABLE

__all__ = ("PARSER",)

_LEAST = 256 * 1024  # more than is read from a socket at once
_MOST = 32 << 20  # what hiredis takes piece by piece is not reserved by a claim alone
_HEAD = 16
_END = b"\r\n"

if TYPE_CHECKING:
    _Base: Any = object
else:
    _Base = DefaultParser


class _LargeAnswers(_Base):
    """redis-py's hiredis parser, which leaves the copies out where an answer is a large string.

    Such an answer is a writable memoryview instead of bytes.
    """

    def read_response(self, *args: Any, **options: Any) -> Any:
        # A timeout of its own (a number) is for a wait, not for a blob.
        waits = isinstance(options.get("timeout", ""), (int, float, type(None)))
        if not waits and self._reader is not None and not self._reader.has_data():
            answer = self._large()
            if answer is not None:
                return answer
        return super().read_response(*args, **options)

    def _large(self) -> memoryview | None:
        """Receive; return the answer if it is a large string, else feed hiredis."""
        buffer = memoryview(self._buffer)
        count = self._receive(buffer)
        size, start = _size(bytes(buffer[: min(count, _HEAD)]))
        if not _LEAST <= size <= _MOST:
            self._reader.feed(self._buffer, 0, count)
            return None
        answer = memoryview(bytearray(size + len(_END)))
        filled = count - start
        answer[:filled] = buffer[start:count]
        while filled < len(answer):
            filled += self._receive(answer[filled:])
        if answer[size:] != _END:
            raise InvalidResponse("a string does not end where its server said")
        return answer[:size]

    def _receive(self, into: memoryview) -> int:
        if self._sock is None:  # closed by another thread
            raise RedisConnectionError("Connection closed by server.")
        count: int = self._sock.recv_into(into)
        if not count:
            raise RedisConnectionError("Connection closed by server.")
        return count


def _size(head: bytes) -> tuple[int, int]:
    """Return the size that a string's answer begins with, and where its bytes begin.

    A size of -1 where *head* is the begin of another answer, or too short.
    """
    number, end, _ = head.partition(_END)
    if not end or number[:1] != b"$" or not number[1:].isdigit():
        return -1, 0
    return int(number[1:]), len(number) + len(end)


PARSER: Any = _LargeAnswers if HIREDIS_AVAILABLE else DefaultParser
