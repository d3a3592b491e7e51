"""Send a blob's buffers as one argument of a command, without joining or copying them."""

from __future__ import annotations

from typing import Any

from offload.stores.protocols import Parts
from offload.stores.redis.redis_internals import Packer

__all__ = ("PACKER", "Bulk")

_SMALL = 6000  # bytes up to which redis-py joins what it sends
_JOINED = 1 << 16  # bytes of a command up to which one copy is cheaper than several sends
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
    """redis-py's own packer, which also takes `Bulk` arguments. It keeps no state."""

    def pack(self, *args: Any) -> list[bytes | memoryview]:
        if not any(isinstance(arg, Bulk) for arg in args):
            packed: list[bytes | memoryview] = super().pack(*args)  # type: ignore[no-untyped-call]
            return packed
        output: list[bytes | memoryview] = []
        head = b"*%d\r\n" % len(args)
        for arg in args:
            if isinstance(arg, Bulk):
                output.append(head + b"$%d\r\n" % arg.size)
                output += arg.pieces
                head = b"\r\n"
            else:
                data = self.encode(arg)
                head += b"$%d\r\n%b\r\n" % (len(data), data)
        output.append(head)
        if sum(map(len, output)) <= _JOINED:
            return [b"".join(output)]
        return output


def _encode(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


PACKER = _PartsPacker(_SMALL, _encode)
