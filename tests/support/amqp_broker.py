"""As much of an AMQP broker as a client needs to connect and learn what the broker states."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from amqp.serialization import dumps

METHOD, CONNECTION, END = 1, 10, b"\xce"
START, TUNE, OPEN_OK = 10, 30, 41


@contextmanager
def amqp_broker(properties: dict[str, str], frame_max: int) -> Iterator[str]:
    """Yield the URL of a broker that states these properties, and accepts one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_serve, args=(server, properties, frame_max), daemon=True)
        thread.start()
        yield f"amqp://guest:guest@127.0.0.1:{server.getsockname()[1]}//"
        server.close()
        thread.join(10)


def _serve(server: socket.socket, properties: dict[str, str], frame_max: int) -> None:
    with suppress(OSError):
        client, _ = server.accept()
        with client, client.makefile("rb") as received:
            received.read(8)  # the protocol's name and version
            start = (0, 9, properties, "PLAIN AMQPLAIN", "en_US")
            client.sendall(_method(START, dumps("ooFSS", start)))
            _skip(received)
            client.sendall(_method(TUNE, dumps("BlB", (2047, frame_max, 0))))
            _skip(received)  # its answer
            _skip(received)  # and the request to open
            client.sendall(_method(OPEN_OK, b"\0"))
            while received.read(4096):
                pass


def _method(number: int, arguments: bytes) -> bytes:
    payload = struct.pack(">HH", CONNECTION, number) + arguments
    return struct.pack(">BHL", METHOD, 0, len(payload)) + payload + END


def _skip(received: object) -> None:
    """Read one frame."""
    _, _, size = struct.unpack(">BHL", received.read(7))
    received.read(size + 1)
