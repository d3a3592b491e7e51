"""A nearly free S3 server: it discards uploads, and answers downloads with zeros.

It shows a client's limit, which a real server's time would hide. It supports only the requests of
`benchmarks.s3`, and checks nothing.
"""

import multiprocessing
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HOST = "127.0.0.1"
_XML = '<?xml version="1.0" encoding="UTF-8"?>'
_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
_COMMON = (
    f'Date: {_DATE}\r\nLast-Modified: {_DATE}\r\nETag: "0123456789abcdef0123456789abcdef"\r\n'
    "x-amz-meta-offload-ttl: 1000000000\r\n"
)


@contextmanager
def sink() -> Iterator[int]:
    """Run the server on a port in a separate process. A key ends in the size of its object:
    ``name-1000``.
    """
    listener = socket.create_server((HOST, 0), backlog=64)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_serve, args=(listener,), daemon=True)
    process.start()
    port = listener.getsockname()[1]
    listener.close()
    try:
        yield port
    finally:
        process.kill()
        process.join()


def _serve(listener: socket.socket) -> None:
    zeros = memoryview(bytes(1 << 24))
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_talk, args=(client, zeros), daemon=True).start()


def _talk(client: socket.socket, zeros: memoryview) -> None:
    buffer = memoryview(bytearray(1 << 20))
    reader = client.makefile("rb")
    with suppress(OSError), client, reader:
        while line := reader.readline():
            method, target, _ = line.decode().split()
            headers = {}
            while (header := reader.readline()) != b"\r\n":
                name, _, value = header.decode().partition(":")
                headers[name.lower()] = value.strip()
            if "expect" in headers:
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            left = int(headers.get("content-length", 0))
            while left:
                left -= reader.readinto(buffer[: min(left, len(buffer))])
            _answer(client, method, target, headers, zeros)


def _answer(
    client: socket.socket, method: str, target: str, headers: dict[str, str], zeros: memoryview
) -> None:
    path, _, query = target.partition("?")
    if method == "POST":
        told = {"uploads": "InitiateMultipartUploadResult", "delete": "DeleteResult"}
        name = told.get(query.partition("=")[0], "CompleteMultipartUploadResult")
        text = f"{_XML}<{name}><UploadId>1</UploadId><Key>k</Key></{name}>".encode()
        client.sendall(f"HTTP/1.1 200 OK\r\n{_COMMON}Content-Length: {len(text)}\r\n\r\n".encode())
        client.sendall(text)
        return
    if method in ("PUT", "DELETE"):
        client.sendall(f"HTTP/1.1 200 OK\r\n{_COMMON}Content-Length: 0\r\n\r\n".encode())
        return
    whole = int(path.rpartition("-")[2][-12:]) if path[-1:].isdigit() else 0
    size, status, extra = whole, "200 OK", ""
    if "range" in headers:
        first, _, last = headers["range"].removeprefix("bytes=").partition("-")
        end = min(int(last) if last else whole - 1, whole - 1)
        size, status = end - int(first) + 1, "206 Partial Content"
        extra = f"Content-Range: bytes {first}-{end}/{whole}\r\n"
    head = f"HTTP/1.1 {status}\r\n{_COMMON}{extra}Content-Length: {size}\r\n\r\n"
    client.sendall(head.encode())
    while method == "GET" and size:
        piece = zeros[:size]
        client.sendall(piece)
        size -= len(piece)
