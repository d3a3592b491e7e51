"""Authentication by password (HTTP Basic) or by token."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Protocol
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from offload.dashboard.security import HEALTH, path_of, root_of
from offload.errors import ConfigurationError

_SHORTEST = 16  # characters of a token


class Auth(Protocol):
    """Decides whether requests may pass."""

    def answer(self, request: Request) -> Response | None:
        """Return None to let *request* pass, else the response to send."""


class Basic:
    """HTTP Basic authentication (RFC 7617); browsers prompt for user and password."""

    def __init__(self, users: dict[str, str]) -> None:
        """Take passwords by user name. Raises ConfigurationError if a name or password is empty."""
        if not users or not all(name and password for name, password in users.items()):
            raise ConfigurationError("basic authentication needs a user and a password")
        if any(":" in name for name in users):
            raise ConfigurationError("a user's name can't contain a colon (RFC 7617)")
        self._users = {name: password.encode() for name, password in users.items()}

    def answer(self, request: Request) -> Response | None:
        name, password = _basic(request.headers.get("authorization", ""))
        # An unknown user takes as long as a wrong password.
        wanted = self._users.get(name, b"")
        if hmac.compare_digest(wanted, password) and wanted:
            return None
        return _refused(
            "A user and password are required.",
            {"www-authenticate": 'Basic realm="offload", charset="UTF-8"'},
        )


class Token:
    """A secret sent as ``Authorization: Bearer …``, or once as ``?token=…`` to set a cookie."""

    def __init__(self, token: str) -> None:
        """Take the secret. Raises ConfigurationError if it is short enough to guess."""
        if len(token) < _SHORTEST or not token.isascii():
            raise ConfigurationError(
                f"a token needs at least {_SHORTEST} ASCII characters; create one with "
                "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        self._token = token.encode()
        # A stolen cookie must not work as a bearer token, so it isn't the token itself. Its name
        # depends on the token because dashboards on other ports of this host share cookies.
        made = hmac.new(self._token, b"offload dashboard", hashlib.sha256).hexdigest()
        self._name, self._cookie = f"offload_{made[:8]}", made[8:]

    def answer(self, request: Request) -> Response | None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return None
        if hmac.compare_digest(request.cookies.get(self._name, "").encode(), self._cookie.encode()):
            return None
        if request.method == "GET" and self._is_token(request.query_params.get("token", "")):
            return self._set_cookie(request)
        return _refused(
            "Open this address with ?token=… once, or send Authorization: Bearer …",
            {"www-authenticate": 'Bearer realm="offload"'},
        )

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token)

    def _set_cookie(self, request: Request) -> Response:
        """Set the cookie and redirect to the address without the token.

        Otherwise the token would stay in the browser's history.
        """
        rest = [(k, v) for k, v in request.query_params.multi_items() if k != "token"]
        path = quote(root_of(request.scope) + path_of(request.scope)).lstrip("/")
        answer = RedirectResponse(f"/{path}" + (f"?{urlencode(rest)}" if rest else ""), 303)
        answer.set_cookie(
            self._name,
            self._cookie,
            path=root_of(request.scope) or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return answer


class Guard:
    """Middleware that authenticates every request except health checks."""

    def __init__(self, app: ASGIApp, auth: Auth | None) -> None:
        self._app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # the dashboard has none
            await send({"type": "websocket.close"})
            return
        if self._auth is not None and scope["type"] == "http":
            answer = self._auth.answer(Request(scope)) if path_of(scope) != HEALTH else None
            if answer is not None:
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _basic(header: str) -> tuple[str, bytes]:
    scheme, _, coded = header.partition(" ")
    if scheme.lower() != "basic":
        return "", b""
    try:
        name, _, password = base64.b64decode(coded.strip(), validate=True).partition(b":")
        return name.decode(), password
    except ValueError:  # invalid base64 or UTF-8
        return "", b""


def _refused(text: str, headers: dict[str, str]) -> Response:
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>offload</title>'
        f"<h1>Authentication required</h1><p>{text}</p></html>"
    )
    return HTMLResponse(page, 401, headers)
