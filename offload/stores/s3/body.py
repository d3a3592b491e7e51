"""Send a blob's buffers as the body of one request, without joining them."""

from __future__ import annotations

from typing import Any

from offload.stores.protocols import Parts

__all__ = ("Body", "body_of", "send_at_once", "size_of")

_SMALL = 64 << 10
"""Bytes up to which a body is joined: it then goes out together with the head."""
_PIECE = 1 << 20
"""Bytes sent by one call, each with the socket's timeout for itself."""


class Body:
    """A file object for botocore, over buffers that aren't copied.

    botocore asks a file for its size, rewinds it to send it again, and otherwise passes it to
    urllib3, which sends what `read` returns. Neither checks the length of a piece, so `read`
    returns a large view, whatever size they ask for.

    It is sent once the server agrees (``Expect: 100-continue``). That costs a round trip, but
    lets a server refuse before megabytes are sent: otherwise, a server that answers early and
    closes the connection would seem unavailable.
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
        """Go to the start, or back to an earlier position from `tell`."""
        if whence == 0:
            at = 0
            for number, piece in enumerate([*self._pieces, b""]):
                if at == offset:
                    self._next = number
                    return offset
                at += len(piece)
        raise OSError(f"a blob's body goes only back to the start of a piece, not to {offset}")


def size_of(parts: Parts) -> int:
    return sum(memoryview(part).nbytes for part in parts)


def body_of(parts: Parts) -> Body | bytes:
    """Return *parts* in the form that botocore sends fastest."""
    return b"".join(parts) if size_of(parts) <= _SMALL else Body(parts)


def send_at_once(params: dict[str, Any], **_: Any) -> None:
    """Send a small body without ``Expect: 100-continue``; handles ``before-call.s3``.

    botocore sends that header with every body. Besides the round trip, versions before August
    2026 misread the next answer on a connection if a server answered at once, as it may for an
    empty body: https://github.com/boto/botocore/issues/3755
    """
    if not isinstance(params.get("body"), Body):
        params["headers"].pop("Expect", None)
