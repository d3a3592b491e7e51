"""Sending a blob's buffers as the body of one request, without joining them."""

from __future__ import annotations

from typing import Any

from offload.stores.protocols import Parts

__all__ = ("Body", "body_of", "send_at_once", "size_of")

_SMALL = 64 << 10
"""Bytes up to which a body is joined: it then goes out together with the head."""
_PIECE = 1 << 20
"""Bytes sent by one call, each with the socket's timeout for itself."""


class Body:
    """What botocore takes for a file, over buffers that stay where they are.

    botocore asks a file for its size, rewinds it to send it again, and otherwise hands it to
    urllib3, which sends what `read` gives, piece by piece. Neither looks at how long a piece
    is, so it is a large view, whatever they ask for. (botocore alone would copy them only to
    compute a checksum, which is not asked for, or to sign, piece by piece.)

    It is sent once the server agrees (``Expect: 100-continue``). That is a round trip, but
    lets a server refuse before megabytes go out: without it, a server that answers early and
    closes would be taken for one that is away.
    """

    def __init__(self, parts: Parts) -> None:
        self._pieces: list[memoryview] = []
        for part in parts:
            view = memoryview(part).cast("B")
            self._pieces += [view[at : at + _PIECE] for at in range(0, len(view), _PIECE)]
        self._size = sum(map(len, self._pieces))
        self._next = 0

    def __len__(self) -> int:
        return self._size

    def read(self, _size: int = -1) -> memoryview | bytes:
        if self._next == len(self._pieces):
            return b""
        self._next += 1
        return self._pieces[self._next - 1]

    def tell(self) -> int:
        return sum(map(len, self._pieces[: self._next]))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to the begin, or back to where `tell` said."""
        if whence == 0:
            at = 0
            for number, piece in enumerate([*self._pieces, b""]):
                if at == offset:
                    self._next = number
                    return offset
                at += len(piece)
        raise OSError(f"a blob's body goes only back to the begin of a piece, not to {offset}")


def size_of(parts: Parts) -> int:
    return sum(memoryview(part).nbytes for part in parts)


def body_of(parts: Parts) -> Body | bytes:
    """Return *parts* as botocore sends them best."""
    return b"".join(parts) if size_of(parts) <= _SMALL else Body(parts)


def send_at_once(params: dict[str, Any], **_: Any) -> None:
    """Have a small body sent without asking first: a handler of the event ``before-call.s3``.

    botocore asks for any. Besides the round trip, versions before August 2026 mistake the next
    answer on a connection after a server that gave its answer at once, as it may where the
    body is empty: https://github.com/boto/botocore/issues/3755
    """
    if not isinstance(params.get("body"), Body):
        params["headers"].pop("Expect", None)
