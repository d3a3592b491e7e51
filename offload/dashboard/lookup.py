"""The page that looks up a digest, a reference, or a task id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from offload.dashboard.facts import facts_of, shown_of
from offload.dashboard.forms import read_form
from offload.dashboard.rendering import render
from offload.dashboard.state import state_of
from offload.errors import BlobMissing, OffloadError, StoreUnavailable
from offload.inspect.blobs import digest_prefix, find_digest, is_ref

__all__ = ("ROUTES",)

_LONGEST = 300  # characters of a digest or task id


async def _ask(request: Request) -> Response:
    """Redirect to the answer. Only forms contain references: see `Stored.remember`."""
    form = await read_form(request)
    what = form.get("what", "").strip()
    if is_ref(what):
        asked = {"ref": state_of(request).stored.remember(what)}
    else:
        asked = {"what": what[:_LONGEST]}
    root = request.scope.get("root_path", "")
    return RedirectResponse(f"{root}/lookup?{urlencode(asked)}", 303)


def _lookup(request: Request) -> Response:
    what = request.query_params.get("what", "").strip()[:_LONGEST]
    name = request.query_params.get("ref", "")
    stored = state_of(request).stored
    if is_ref(what):
        return _page(
            request, "", {}, "Use the form to look up a reference: addresses must not contain any."
        )
    ref = stored.remembered(name) if name else None
    if name and ref is None:
        return _page(request, "", {}, "This reference is no longer remembered: look it up again.")
    if not what and ref is None:
        return _page(request, "", {})
    try:
        begin = None if ref is not None else digest_prefix(what)
        if begin is not None:
            try:
                root = request.scope.get("root_path", "")
                return RedirectResponse(f"{root}/blobs/{find_digest(stored.store, begin)}", 303)
            except BlobMissing:
                pass  # task ids can be hexadecimal digits, too
        return _page(request, what, stored.described(what if ref is None else ref))
    except StoreUnavailable:
        raise
    except OffloadError as exc:
        return _page(request, what, {}, str(exc))


def _page(request: Request, what: str, described: Mapping[str, Any], error: str = "") -> Response:
    """Show a description; a task's result has its own section."""
    result = described.get("result")
    value = result if isinstance(result, Mapping) else described
    preview = value.get("preview")
    task = described.get("task")
    return render(
        request,
        "lookup.html",
        404 if error else 200,
        title="Look up",
        what=what,
        error=error,
        kind=described.get("what", ""),
        facts=facts_of(_plain(described)),
        result=facts_of(_plain(result)) if isinstance(result, Mapping) else None,
        digest=value.get("digest"),
        preview=None if preview is None else shown_of(preview),
        held="?" + urlencode({"by": task}) if task else "",
    )


def _plain(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts without a section of their own."""
    left = {**described}
    for name in ("what", "preview", "chunks", "holders"):
        left.pop(name, None)
    if isinstance(left.get("result"), Mapping):
        del left["result"]
    return left


ROUTES = [
    Route("/lookup", _lookup, name="lookup"),
    Route("/lookup", _ask, methods=["POST"], name="look_up"),
]
