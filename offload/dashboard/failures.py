"""The response to errors of the dashboard itself."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from offload.dashboard.rendering import render

__all__ = ("Failures",)

logger = logging.getLogger(__name__)


class Failures:
    """Responds with a page that reloads by itself, and logs the error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as exc:
            if scope["type"] != "http" or begun:
                raise
            logger.exception("%s %r failed", scope["method"], scope["path"])
            error = f"{type(exc).__name__}: see the dashboard's log for details."
            page = render(Request(scope), "error.html", 500, title="This page failed", error=error)
            await page(scope, receive, send)
