"""The dashboard as an ASGI app: routes, middleware, and error pages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from celery import Celery

from offload.errors import ConfigurationError, InvalidRef, OffloadError, StoreUnavailable
from offload.hooks.runtime import Runtime

try:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as exc:
    raise ConfigurationError(
        'the dashboard needs Starlette and Jinja2: pip install "offload[dashboard]"'
    ) from exc

from offload.dashboard import (
    blobs,
    catalog,
    classes,
    estimates,
    lookup,
    overview,
    stores,
    tasks,
    values,
    workers,
)
from offload.dashboard.auth import Auth, Guard
from offload.dashboard.rendering import render
from offload.dashboard.security import HEALTH, LOOPBACK, Headers, Hosts
from offload.dashboard.state import DashboardState

logger = logging.getLogger(__name__)

_STATIC = Path(__file__).parent / "static"


def dashboard(
    app: Celery,
    *,
    auth: Auth | None = None,
    allow_delete: bool = False,
    hosts: Sequence[str] | None = None,
) -> Starlette:
    """Return the dashboard of *app* as an ASGI app, to serve or mount.

    Args:
        app: a Celery app with offload.
        auth: `Basic` or `Token`. With None, everyone who can reach it may view it; mount it in an
            app that authenticates requests.
        allow_delete: whether users may remove blobs.
        hosts: host names to accept in requests (``"ops.example.com"``; ``"*"`` accepts any), as a
            protection against DNS rebinding. Defaults to those of this machine if *auth* is None,
            else to any.

    Raises ConfigurationError if the app has no offload, its store is invalid, or an extra is
    missing.
    """
    runtime = getattr(app, "_offload", None)
    if not isinstance(runtime, Runtime):
        raise ConfigurationError(
            f"app {app.main or 'default'!r} has no offload: connect it with Offload(app)"
        )
    if hosts is None:
        hosts = LOOPBACK if auth is None else ["*"]
    served = Starlette(
        routes=[
            *overview.ROUTES,
            *tasks.ROUTES,
            *values.ROUTES,
            *blobs.ROUTES,
            *lookup.ROUTES,
            *catalog.ROUTES,
            *classes.ROUTES,
            *stores.ROUTES,
            *workers.ROUTES,
            *estimates.ROUTES,
            Route(HEALTH, _health, name="health"),
            Mount("/static", StaticFiles(directory=_STATIC), name="static"),
        ],
        middleware=[
            Middleware(Headers),
            Middleware(Hosts, names=hosts),
            Middleware(Guard, auth=auth),
            Middleware(GZipMiddleware, minimum_size=1000),
            Middleware(_ErrorPages),
        ],
        exception_handlers={OffloadError: _failed, 404: _missing},
    )
    runtime.store  # noqa: B018 (invalid settings raise here, not on each page)
    served.state.state = DashboardState(runtime, allow_delete=allow_delete)
    return served


async def _health(_: Request) -> Response:
    """Reply on the event loop: all threads may be waiting for a store."""
    return PlainTextResponse("ok\n")


def _failed(request: Request, error: Exception) -> Response:
    """Show the error on a page that reloads by itself."""
    unavailable = isinstance(error, StoreUnavailable)
    status = 503 if unavailable else 400 if isinstance(error, InvalidRef) else 500
    head = "Store unavailable" if unavailable else "This page can't be shown"
    return render(request, "error.html", status, title=head, error=str(error))


def _missing(request: Request, _: Exception) -> Response:
    return render(
        request, "error.html", 404, title="Page not found", error="Choose one of the pages above."
    )


class _ErrorPages:
    """Middleware that logs unexpected errors and shows a page that reloads by itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def observe(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, observe)
        except Exception as exc:
            if scope["type"] != "http" or started:
                raise
            logger.exception("%s %r failed", scope["method"], scope["path"])
            error = f"{type(exc).__name__}: see the dashboard's log for details."
            page = render(Request(scope), "error.html", 500, title="This page failed", error=error)
            await page(scope, receive, send)
