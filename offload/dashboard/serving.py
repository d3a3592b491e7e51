"""Serving the dashboard by itself."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from offload.errors import ConfigurationError

__all__ = ("serve",)

_PATIENCE = 5  # seconds that what is under way may still take when it is asked to end


def serve(
    app: ASGIApp, host: str, port: int, *, prefix: str = "", started: Callable[[str], None]
) -> None:
    """Serve *app* until the process is asked to end.

    Args:
        port: 0 takes a free one.
        prefix: the path that all its addresses begin with, as ``/offload``.
        started: is called with its address once it can be reached.

    Raises ConfigurationError if it cannot listen there.
    """
    prefix = f"/{prefix.strip('/')}".rstrip("/")
    if prefix:
        app = Starlette(routes=[Mount(prefix, app)])
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family)
    except OSError as exc:
        raise ConfigurationError(f"{host}:{port} cannot be listened on: {exc}") from exc
    with listening:
        name = f"[{host}]" if ":" in host else host
        started(f"http://{name}:{listening.getsockname()[1]}{prefix}/")
        config = uvicorn.Config(
            app,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_PATIENCE,
        )
        uvicorn.Server(config).run(sockets=[listening])
