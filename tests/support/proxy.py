"""A TCP proxy between a client and a server that injects network faults."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HOST = "127.0.0.1"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection


class Proxy:
    """Forwards bytes between a free port and the server's port.

    Modes: ``pass``; ``refuse`` (reset new and open connections); ``blackhole`` (accept
    connections, drop their bytes, never answer); ``cut`` (reset a connection after a number of
    bytes from its client); ``halt`` (forward nothing after a number of bytes from a client);
    ``hold`` (after a number of bytes, keep a connection's bytes until `release`).
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._mode, self._budget = "pass", 0
        self.connections = 0
        self.swallowed = 0  # bytes received as a black hole
        self.halted = False
        self.held = 0  # connections that wait for `release`
        self._held_way = ""
        self._release = threading.Event()
        self._changed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        # Short timeouts, so that a change to a black hole is noticed soon.
        return f"redis://{HOST}:{self.port}/0?socket_timeout=0.5&socket_connect_timeout=0.5"

    def __enter__(self):
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()
        _end(self._listener)
        self._reset_all()

    def restore(self) -> None:
        self._set("pass")

    def refuse(self) -> None:
        self._set("refuse")

    def blackhole(self) -> None:
        self._set("blackhole", reset=False)

    def cut_after(self, count: int) -> None:
        """Reset every new connection after *count* bytes from its client."""
        self._set("cut", count)

    def halt_after(self, count: int) -> None:
        """Drop everything after *count* bytes from a connection's client."""
        self._set("halt", count)

    def hold_after(self, count: int, way: str) -> None:
        """Hold back what each connection sends after *count* more bytes of ``requests`` or
        ``answers``.
        """
        self._release.clear()
        self._held_way = way
        self._set("hold", count, reset=False)

    def release(self) -> None:
        """Send what was held, and everything after it."""
        self._set("pass", reset=False)
        self._release.set()

    def _set(self, mode: str, budget: int = 0, *, reset: bool = True) -> None:
        self._mode, self._budget = mode, budget
        if reset:
            self._reset_all()

    def _reset_all(self) -> None:
        with self._lock:
            for connection in self._open:
                _reset(connection)
            self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._mode == "refuse":
                _reset(client)
                continue
            try:
                server = socket.create_connection((HOST, self._target), timeout=5)
                server.settimeout(None)
            except OSError:
                _reset(client)
                continue
            with self._lock:
                self._open |= {client, server}
            left = [self._budget if self._mode == "cut" else None]
            for source, sink, up in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._pump, args=(source, sink, up, left), daemon=True
                ).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, up: bool, left: list[int | None]
    ) -> None:
        passed = 0
        way = "requests" if up else "answers"
        with _ending(source), _ending(sink), suppress(OSError):
            while data := source.recv(1 << 16):
                if self._mode == "hold" and self._held_way == way:
                    passed += len(data)
                    if passed > self._budget:
                        self._hold()
                if self._mode == "blackhole":
                    self.swallowed += len(data)
                    continue
                if self._mode == "halt" and up:
                    self._budget -= len(data)
                    if self._budget < 0:
                        self._mode, self.halted = "blackhole", True
                        continue
                if up and left[0] is not None:
                    data, left[0] = data[: left[0]], left[0] - len(data)
                sink.sendall(data)
                if left[0] is not None and left[0] <= 0:
                    _reset(source)
                    _reset(sink)
                    return

    def _hold(self) -> None:
        with self._lock:
            self.held += 1
        self._release.wait()
        with self._lock:
            self.held -= 1


@contextmanager
def _ending(connection: socket.socket) -> Iterator[None]:
    try:
        yield
    finally:
        _end(connection)


def _end(connection: socket.socket) -> None:
    """Close the socket and wake threads that wait on it, which closing alone doesn't."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        connection.close()


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    _end(connection)
