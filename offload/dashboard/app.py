"""The dashboard as an ASGI app: its pages, and what stands before them."""

from __future__ import annotations

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
except ImportError as exc:
    raise ConfigurationError(
        'the dashboard needs Starlette, Jinja2 and Plotly: pip install "offload[dashboard]"'
    ) from exc

from offload.dashboard import (
    blob,
    blobs,
    classes,
    estimates,
    lookup,
    overview,
    stores,
    tasks,
    workers,
)
from offload.dashboard.addresses import HEALTH
from offload.dashboard.auth import Auth, Guard
from offload.dashboard.charts import plotly
from offload.dashboard.failures import Failures
from offload.dashboard.headers import LOOPBACK, Headers, Hosts
from offload.dashboard.rendering import render
from offload.dashboard.state import DashboardState

__all__ = ("dashboard",)

_STATIC = Path(__file__).parent / "static"


def dashboard(
    app: Celery,
    *,
    auth: Auth | None = None,
    allow_delete: bool = False,
    hosts: Sequence[str] | None = None,
) -> Starlette:
    """Return the dashboard of *app*, to be served or mounted.

    Args:
        app: a Celery app with offload.
        auth: who may look: `Basic` or `Token`. None: everybody who reaches it, or whom the app
            that it is mounted in lets through.
        allow_delete: whether blobs may be removed.
        hosts: names by which it may be asked for (``"ops.example.com"``; ``"*"`` is any), as a
            page elsewhere could make a browser ask by a name of its own. By default those of this
            machine where *auth* is None, else any.

    Raises ConfigurationError if the app has no offload, its store is none, or an extra is missing.
    """
    runtime = getattr(app, "_offload", None)
    if not isinstance(runtime, Runtime):
        raise ConfigurationError(
            f"app {app.main or 'default'!r} has no offload: connect it by Offload(app)"
        )
    if hosts is None:
        hosts = LOOPBACK if auth is None else ["*"]
    served = Starlette(
        routes=[
            *overview.ROUTES,
            *tasks.ROUTES,
            *blobs.ROUTES,
            *blob.ROUTES,
            *lookup.ROUTES,
            *classes.ROUTES,
            *stores.ROUTES,
            *workers.ROUTES,
            *estimates.ROUTES,
            Route(HEALTH, _health, name="health"),
            Route("/static/plotly.js", plotly, name="plotly"),
            Mount("/static", StaticFiles(directory=_STATIC), name="static"),
        ],
        middleware=[
            Middleware(Headers),
            Middleware(Hosts, names=hosts),
            Middleware(Guard, auth=auth),
            Middleware(GZipMiddleware, minimum_size=1000),
            Middleware(Failures),
        ],
        exception_handlers={OffloadError: _failed, 404: _missing},
    )
    runtime.store  # noqa: B018 (what is wrong with its settings is said now, not on each page)
    served.state.state = DashboardState(runtime, allow_delete=allow_delete)
    return served


async def _health(_: Request) -> Response:
    """Answer also while all threads wait for a store."""
    return PlainTextResponse("ok\n")


def _failed(request: Request, error: Exception) -> Response:
    """Say what is wrong, on a page that tries again by itself."""
    away = isinstance(error, StoreUnavailable)
    status = 503 if away else 400 if isinstance(error, InvalidRef) else 500
    head = "The store does not answer" if away else "This cannot be shown"
    return render(request, "error.html", status, title=head, error=str(error))


def _missing(request: Request, _: Exception) -> Response:
    return render(
        request, "error.html", 404, title="There is no such page", error="Look at those above."
    )
