"""A delay line: a relay that adds latency and limits the rate, in a process of its own.

    python -m benchmarks.delay PORT

It prints the port that it listens on. Each line of its input is a round-trip time in milliseconds
and a rate in Mbit/s; all connections share that rate, in each direction. It ends with its input.
"""

import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HOST = "127.0.0.1"
_PIECE = 1 << 15  # bytes
_UNDERWAY = 128  # pieces of a connection: more than the line holds at 10 ms and 1 Gbit/s


class Direction:
    """One direction of the line. Pieces arrive in the order in which they were sent."""

    def __init__(self) -> None:
        self.delay = 0.0  # seconds
        self.rate = 1e12  # bytes a second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def arrival(self, size: int) -> float:
        """Return when a piece that is sent now arrives, by the monotonic clock."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + size / self.rate
            return self._free_at + self.delay

    def carry(self, source: socket.socket, sink: socket.socket) -> None:
        pieces: queue.Queue[tuple[float, bytes]] = queue.Queue(_UNDERWAY)
        threading.Thread(target=_deliver, args=(pieces, sink), daemon=True).start()
        with suppress(OSError):
            while data := source.recv(_PIECE):
                pieces.put((self.arrival(len(data)), data))
        pieces.put((time.monotonic() + self.delay, b""))


def _deliver(pieces: queue.Queue[tuple[float, bytes]], sink: socket.socket) -> None:
    with suppress(OSError):
        while True:
            at, data = pieces.get()
            if (left := at - time.monotonic()) > 0:
                time.sleep(left)
            if not data:
                break
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, target: int, there: Direction, back: Direction) -> None:
    while True:
        client, _ = listener.accept()
        server = socket.create_connection((HOST, target))
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for direction, ends in ((there, (client, server)), (back, (server, client))):
            threading.Thread(target=direction.carry, args=ends, daemon=True).start()


def main() -> None:
    there, back = Direction(), Direction()
    listener = socket.create_server((HOST, 0), backlog=128)
    given = (listener, int(sys.argv[1]), there, back)
    threading.Thread(target=_accept, args=given, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    for line in sys.stdin:
        milliseconds, megabits = map(float, line.split())
        for direction in (there, back):
            direction.delay, direction.rate = milliseconds / 2000, megabits * 125_000
        print("set", flush=True)


class Line:
    """A delay line to a server, in a process.

    Attributes:
        port: its port on loopback.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(self._read())

    def set(self, milliseconds: float, megabits: float) -> None:
        """Set the round-trip time and the rate in Mbit/s."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{milliseconds} {megabits}\n")
        self._process.stdin.flush()
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def delay_line(target: int) -> Iterator[Line]:
    """Run a delay line to *target*, a port on loopback, without a delay at first."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.delay", str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Line(process)
        finally:
            process.kill()


if __name__ == "__main__":
    main()
