"""Security headers, host name checks, and protection of forms against forgery (CSRF)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers as RequestHeaders
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from offload.dashboard.state import state_of

HEALTH = "/healthz"
"""The path of the health check, which needs no authentication."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Host names by which a browser on this machine reaches it."""

_HEADERS = {
    # Forbid inline scripts, inline styles, and other origins: then text from a store can't run even
    # if a template fails to escape it.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_MAX_QUERY = 8 << 10  # bytes of a query string, which a page repeats in each of its links
_MAX_FORM = 64 << 10  # bytes of a form
_COOKIE = "offload_form"
FIELD = "form"
"""Name of the form field that contains the token."""


def root_of(scope: Scope) -> str:
    """Return the path at which the dashboard is mounted; "" at the root."""
    return str(scope.get("root_path", ""))


def path_of(scope: Scope) -> str:
    """Return the path of a request below the dashboard's root.

    Starlette's ``request.url`` isn't safe for this. It contains the Host header, which the client
    chooses: in some versions, ``Host: x/healthz?`` changes the path of every page.
    """
    return str(scope["path"]).removeprefix(root_of(scope)) or "/"


class Headers:
    """Middleware that adds security headers and keeps pages out of browser caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, text in _HEADERS.items():
                    headers[name] = text
                static = "etag" in headers
                headers["cache-control"] = "private, no-cache" if static else "no-store"
            await send(message)

        if len(scope.get("query_string", b"")) > _MAX_QUERY:
            response = PlainTextResponse("the query string is too long\n", 414)
            await response(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)


class Hosts:
    """Middleware that refuses hosts not in *names*, unless *names* contains ``"*"``."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self._names and path_of(scope) != HEALTH:
            host = RequestHeaders(scope=scope).get("host", "").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name not in self._names:
                text = f"unknown host name; allowed (hosts): {', '.join(self._names)}\n"
                await PlainTextResponse(text, 400)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def token_of(request: Request) -> str:
    """Return the CSRF token for forms on a page; `sign` sets the matching cookie."""
    return _token(request, _session(request))


def sign(request: Request, response: Response) -> None:
    """Set the session cookie that forms require, unless the browser already has it."""
    if not request.cookies.get(_COOKIE):
        response.set_cookie(
            _COOKIE,
            _session(request),
            path=root_of(request.scope) or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )


async def read_form(request: Request) -> dict[str, str]:
    """Return a form's fields.

    Raises HTTPException: 403 if another site sent it, 413 if it is too long.
    """
    _check_origin(request)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_FORM:
            raise HTTPException(413, "the form is too long")
    given = {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
    cookie = request.cookies.get(_COOKIE, "")
    wanted = _token(request, cookie)
    if not cookie or not hmac.compare_digest(wanted.encode(), given.get(FIELD, "").encode()):
        raise HTTPException(403, "the form is from another dashboard, or too old: reload the page")
    return given


def _check_origin(request: Request) -> None:
    """Refuse forms from other origins, including other ports of this machine.

    https://developer.mozilla.org/docs/Web/HTTP/Headers/Sec-Fetch-Site
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        right = site in {"same-origin", "none"}
    else:
        right = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not right:
        raise HTTPException(403, "the form was sent by another site")


def _session(request: Request) -> str:
    """Return the browser's session, or create one for this request."""
    found: str | None = request.cookies.get(_COOKIE) or getattr(request.state, "form", None)
    if found is None:
        found = request.state.form = secrets.token_urlsafe(24)
    return found


def _token(request: Request, session: str) -> str:
    return hmac.new(state_of(request).secret, session.encode(), hashlib.sha256).hexdigest()
