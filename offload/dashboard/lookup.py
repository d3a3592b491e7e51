"""The page on which a digest, a reference or the id of a task is looked up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from offload.catalog.description import describe
from offload.catalog.naming import digest_begin, find
from offload.dashboard.board import board_of
from offload.dashboard.facts import facts_of, shown_of
from offload.dashboard.rendering import render
from offload.errors import BlobMissing, OffloadError, StoreUnavailable

__all__ = ("ROUTES",)

_LONGEST = 4000  # characters


def _lookup(request: Request) -> Response:
    what = request.query_params.get("what", "").strip()[:_LONGEST]
    hook = board_of(request).hook
    if not what:
        return _page(request, what, {})
    try:
        begin = digest_begin(what)
        if begin is not None:
            try:
                root = request.scope.get("root_path", "")
                return RedirectResponse(f"{root}/blobs/{find(hook.store, begin)}", 303)
            except BlobMissing:
                pass  # the id of a task may be hexadecimal digits, too
        return _page(request, what, describe(hook, what))
    except StoreUnavailable:
        raise
    except OffloadError as exc:
        return _page(request, what, {}, str(exc))


def _page(request: Request, what: str, told: Mapping[str, Any], error: str = "") -> Response:
    """Show what was told: of a task its result in a part of its own."""
    result = told.get("result")
    value = result if isinstance(result, Mapping) else told
    preview = value.get("preview")
    task = told.get("task")
    return render(
        request,
        "lookup.html",
        404 if error else 200,
        title="Look up",
        what=what,
        error=error,
        kind=told.get("what", ""),
        facts=facts_of(_plain(told)),
        result=facts_of(_plain(result)) if isinstance(result, Mapping) else None,
        digest=value.get("digest"),
        preview=None if preview is None else shown_of(preview),
        held="?" + urlencode({"by": task}) if task else "",
    )


def _plain(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is not shown in a part of its own."""
    left = {**told}
    for name in ("what", "preview", "chunks", "holders"):
        left.pop(name, None)
    if isinstance(left.get("result"), Mapping):
        del left["result"]
    return left


ROUTES = [Route("/lookup", _lookup, name="lookup")]
