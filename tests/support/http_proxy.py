"""An HTTP proxy between a client and a server that injects the faults of real servers."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from contextlib import closing, suppress

from tests.support.servers import HOST

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection


class HTTPProxy:
    """Forwards HTTP requests one by one, except those that a fault waits for.

    A fault is a function of the exchange; it answers, or forwards the request and alters the
    answer.
    """

    def __init__(self, port):
        self._target = port
        self._faults = []
        self._lock = threading.Lock()
        self.seen = []
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self._ended.set()
        self._listener.close()

    def fail(self, fault, *methods, times=1, within=""):
        """Apply *fault* to the next requests with these methods (default: all) whose path contains
        *within*.
        """
        self._faults += [(fault, methods, within)] * times

    def restore(self):
        """Forward everything from now on."""
        self._faults.clear()

    def left(self):
        """Return how many faults have not met a request yet."""
        return len(self._faults)

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with closing(client), suppress(OSError), client.makefile("rb") as reader:
            while (
                exchange := Exchange.read(client, reader, self._target, self._ended)
            ) is not None:
                self.seen.append(exchange)
                self._fault_for(exchange)(exchange)
                if exchange.is_over:
                    return

    def _fault_for(self, exchange):
        with self._lock:
            for at, (fault, methods, within) in enumerate(self._faults):
                if exchange.method in (methods or (exchange.method,)) and within in exchange.path:
                    del self._faults[at]
                    return fault
        return Exchange.pass_on


class Exchange:
    """One request and its answer."""

    @classmethod
    def read(cls, client, reader, target, ended):
        line = reader.readline()
        if not line:
            return None
        self = cls()
        self.client, self.reader, self.target, self.ended = client, reader, target, ended
        self.is_over = False
        self.line = line
        self.method, self.path, _ = line.decode().split()
        self.headers = http.client.parse_headers(reader)
        self.size = int(self.headers.get("Content-Length") or 0)
        return self

    def body(self, size=None):
        if self.headers.get("Expect"):
            self.client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            del self.headers["Expect"]
        return self.reader.read(self.size if size is None else size)

    def forward(self):
        """Forward the request to the server; return its answer."""
        body = self.body()
        with closing(socket.create_connection((HOST, self.target), timeout=10)) as server:
            lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
            server.sendall(self.line + lines.encode() + b"\r\n" + body)
            answer = http.client.HTTPResponse(server, method=self.method)
            answer.begin()
            return answer, answer.read()

    def send(self, answer, body, size=None):
        lines = "".join(f"{name}: {value}\r\n" for name, value in answer.getheaders())
        head = f"HTTP/1.1 {answer.status} {answer.reason}\r\n{lines}\r\n"
        self.client.sendall(head.encode() + body[:size])

    def pass_on(self):
        self.send(*self.forward())

    def reset(self):
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.is_over = True


def refused(exchange):
    exchange.reset()


def lost(exchange):
    """Let the server execute the request, but drop its answer."""
    exchange.forward()
    exchange.reset()


def silent(exchange):
    exchange.body()
    exchange.ended.wait(10)
    exchange.is_over = True


def cut_upload(size):
    def fault(exchange):
        exchange.body(size)
        exchange.reset()

    return fault


def cut(size):
    """Cut the answer's body short."""

    def fault(exchange):
        exchange.send(*exchange.forward(), size)
        exchange.is_over = True

    return fault


def stalled(size):
    def fault(exchange):
        exchange.send(*exchange.forward(), size)
        exchange.ended.wait(10)
        exchange.is_over = True

    return fault


def says(status, code, date=None):
    """Answer with an error of the server."""

    def fault(exchange):
        exchange.body()
        body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        dated = f"Date: {date}\r\n" if date else ""
        head = f"HTTP/1.1 {status} X\r\n{dated}Content-Length: {len(body)}\r\n\r\n"
        exchange.client.sendall(head.encode() + (b"" if exchange.method == "HEAD" else body))

    return fault


def web_page(status):
    """Answer like a web server that doesn't speak S3."""

    def fault(exchange):
        exchange.body()
        body = b"<!DOCTYPE html><title>a page</title>"
        head = f"HTTP/1.1 {status} X\r\nContent-Type: text/html; charset=utf-8\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        exchange.client.sendall(head.encode() + (b"" if exchange.method == "HEAD" else body))

    return fault
