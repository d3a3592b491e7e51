"""Serve the dashboard with uvicorn, as a process of its own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from offload.errors import ConfigurationError
from offload.metrics.connections import BACKLOG, PATIENCE, most_connections
from offload.text import url_host

_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_LONGEST = 120.0  # seconds from the start of a request to the end of its connection
_PATIENCE = 5  # seconds that running requests have to finish at shutdown


def serve(
    app: ASGIApp, host: str, port: int, *, prefix: str = "", started: Callable[[str], None]
) -> None:
    """Serve *app* until the process receives SIGINT or SIGTERM.

    Args:
        port: the port to listen on; 0 picks a free one.
        prefix: path prefix of all addresses, such as ``/offload``.
        started: called with the dashboard's URL once it accepts connections.

    Raises ConfigurationError if it can't listen on *host* and *port*.
    """
    prefix = f"/{prefix.strip('/')}".rstrip("/")
    if prefix:
        app = Starlette(routes=[Mount(prefix, app)])
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as exc:
        raise ConfigurationError(f"can't listen on {url_host(host)}:{port}: {exc}") from exc
    with listening:
        started(f"http://{url_host(host)}:{listening.getsockname()[1]}{prefix}/")
        config = uvicorn.Config(
            _Closing(app),
            http=_bounded(most_connections()),
            backlog=BACKLOG,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_PATIENCE,
        )
        uvicorn.Server(config).run(sockets=[listening])


class _Closing:
    """Middleware that closes the connection after every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self._app(scope, receive, closing)


def _bounded(most: int) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol class, limited to *most* connections.

    A connection that sends no request is dropped after `PATIENCE` seconds, or earlier to admit the
    next client; uvicorn itself would wait forever.
    """
    silent: dict[Bounded, None] = {}  # oldest first
    connected: set[Bounded] = set()

    class Bounded(asyncio.Protocol):
        def __init__(self, **options: Any) -> None:
            self._inner: Any = AutoHTTPProtocol(**options)
            self._transport: asyncio.Transport | None = None
            self._timer: asyncio.TimerHandle | None = None
            self._end = b""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)  # noqa: S101 (of a socket)
            self._transport = transport
            if len(connected) >= most and silent:
                next(iter(silent)).drop()
            connected.add(self)
            silent[self] = None
            self._inner.connection_made(transport)
            self._end_after(PATIENCE)
            if len(connected) > most:
                transport.write(_BUSY)
                transport.close()

        def data_received(self, data: bytes) -> None:
            if self in silent:
                self._end = (self._end + data)[-len(data) - 3 :]
                if b"\r\n\r\n" in self._end:
                    del silent[self]
                    self._end_after(_LONGEST)
            if self in connected:
                self._inner.data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            self._inner.connection_lost(exc)

        def eof_received(self) -> bool | None:
            kept: bool | None = self._inner.eof_received()
            return kept

        def pause_writing(self) -> None:
            self._inner.pause_writing()

        def resume_writing(self) -> None:
            self._inner.resume_writing()

        def drop(self) -> None:
            """Close the connection at once."""
            self._forget()
            if self._transport is not None:
                self._transport.abort()

        def _forget(self) -> None:
            connected.discard(self)
            silent.pop(self, None)
            if self._timer is not None:
                self._timer.cancel()

        def _end_after(self, seconds: float) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(seconds, self.drop)

    return Bounded
