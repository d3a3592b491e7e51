"""Forms, protected against requests forged by other sites."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from urllib.parse import parse_qs, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from offload.dashboard.addresses import root_of
from offload.dashboard.state import state_of

__all__ = ("COOKIE", "FIELD", "read_form", "sign", "token_of")

COOKIE = "offload_form"
FIELD = "form"
_LONGEST = 64 << 10  # bytes of a form


def token_of(request: Request) -> str:
    """Return the token for forms on a page; `sign` sets the matching cookie."""
    return _token(request, _session(request))


def sign(request: Request, response: Response) -> None:
    """Set the cookie without which forms are refused, unless the browser has it."""
    if not request.cookies.get(COOKIE):
        response.set_cookie(
            COOKIE,
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
        if len(body) > _LONGEST:
            raise HTTPException(413, "the form is too long")
    given = {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
    cookie = request.cookies.get(COOKIE, "")
    wanted = _token(request, cookie)
    if not cookie or not hmac.compare_digest(wanted.encode(), given.get(FIELD, "").encode()):
        raise HTTPException(403, "the form is from another dashboard, or too old: reload the page")
    return given


def _check_origin(request: Request) -> None:
    """Refuse forms of other origins, which includes other ports of this machine.

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
    found: str | None = request.cookies.get(COOKIE) or getattr(request.state, "form", None)
    if found is None:
        found = request.state.form = secrets.token_urlsafe(24)
    return found


def _token(request: Request, session: str) -> str:
    return hmac.new(state_of(request).secret, session.encode(), hashlib.sha256).hexdigest()
