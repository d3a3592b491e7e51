"""Security headers of every response, and the host names that requests may use."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers as Given
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from offload.dashboard.addresses import HEALTH, path_of

__all__ = ("LOOPBACK", "Headers", "Hosts")

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine in browsers."""

_SAID = {
    # No inline scripts and no other origins: text from a store couldn't run even if it
    # weren't escaped. (Plotly writes inline styles.)
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


_LONGEST = 8 << 10
"""The most bytes of a query string: pages repeat it in each of their links."""


class Headers:
    """Adds security headers to every response, and keeps pages out of browser caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, text in _SAID.items():
                    headers[name] = text
                static = "etag" in headers
                headers["cache-control"] = "private, no-cache" if static else "no-store"
            await send(message)

        if len(scope.get("query_string", b"")) > _LONGEST:
            answer = PlainTextResponse("the query string is too long\n", 414)
            await answer(scope, receive, sending)
            return
        await self._app(scope, receive, sending)


class Hosts:
    """Refuses requests whose Host isn't in *names*, unless that contains ``"*"``."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self._names and path_of(scope) != HEALTH:
            host = Given(scope=scope).get("host", "").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name not in self._names:
                text = f"unknown host name; allowed (hosts): {', '.join(self._names)}\n"
                await PlainTextResponse(text, 400)(scope, receive, send)
                return
        await self._app(scope, receive, send)
