"""Pages of one blob: its content and holders, and its removal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from offload.dashboard.facts import Shown, facts_of, shown_of
from offload.dashboard.forms import read_form
from offload.dashboard.rendering import render
from offload.dashboard.state import state_of
from offload.digest import Digest, parse_digest
from offload.errors import OffloadError, StoreUnavailable
from offload.inspect.blobs import holders_of, remove_blobs
from offload.stores.capabilities import BlobPeek, blob_inspection_of, hold_tracking_of
from offload.stores.protocols import Store
from offload.text import human_duration

__all__ = ("ROUTES",)

_NAMED = 1000  # holders of a blob that are fetched, if there are no more
_SHOWN = 100  # holders and chunks that are shown


@dataclass(frozen=True)
class _Holders:
    """The holders of a blob.

    Attributes:
        count: None if the store doesn't track holds.
        named: some of them with the time left, longest first; empty if there are too many.
    """

    count: int | None
    named: Sequence[tuple[str, str]]


def _blob(request: Request) -> Response:
    digest = _digest(request)
    stored = state_of(request).stored
    [seen] = blob_inspection_of(stored.store).peek([digest], 1)
    if seen is None:
        return _gone(request, digest)
    described: Mapping[str, Any] = {}
    broken = ""
    try:
        described = stored.content(digest)
        broken = described.get("broken", "")
    except StoreUnavailable:
        raise
    except OffloadError as exc:
        broken = str(exc)
    plain = {
        name: described[name] for name in described if name not in ("preview", "chunks", "broken")
    }
    chunks = described.get("chunks", [])
    preview: Shown | None = shown_of(described["preview"]) if "preview" in described else None
    return render(
        request,
        "blob.html",
        title=digest,
        facts=facts_of({**plain, **_moment(seen)}),
        broken=broken,
        holders=_holders(stored.store, digest),
        chunks=chunks[:_SHOWN],
        chunk_count=len(chunks),
        preview=preview,
        allow_delete=state_of(request).allow_delete,
    )


def _remove_page(request: Request) -> Response:
    """Ask for confirmation before a blob is removed."""
    digest = _may_remove(request)
    store = state_of(request).stored.store
    [seen] = blob_inspection_of(store).peek([digest], 1)
    if seen is None:
        return _gone(request, digest)
    return _asks(request, digest, _holders(store, digest))


async def _remove(request: Request) -> Response:
    digest = _may_remove(request)
    form = await read_form(request)
    return await run_in_threadpool(_removed, request, digest, form.get("force") == "yes")


def _removed(request: Request, digest: Digest, force: bool) -> Response:
    stored = state_of(request).stored
    if remove_blobs(stored.store, [digest], force=force):
        return _asks(request, digest, _holders(stored.store, digest), status=409)
    stored.changed()
    root = request.scope.get("root_path", "")
    return RedirectResponse(f"{root}/blobs?{urlencode({'removed': digest})}", 303)


def _asks(request: Request, digest: Digest, holders: _Holders, status: int = 200) -> Response:
    return render(
        request,
        "remove.html",
        status,
        title="Remove a blob?",
        digest=digest,
        holders=holders,
        stays=status == 409,
    )


def _may_remove(request: Request) -> Digest:
    if not state_of(request).allow_delete:
        raise HTTPException(403, "removing blobs is off: start the dashboard with --allow-delete")
    return _digest(request)


def _digest(request: Request) -> Digest:
    try:
        return parse_digest(request.path_params["digest"])
    except ValueError as exc:
        raise HTTPException(404) from exc


def _gone(request: Request, digest: Digest) -> Response:
    text = f"The store has no {digest}: it expired, was deleted or evicted, or was never there."
    return render(request, "error.html", 404, title="Blob not found", error=text)


def _moment(seen: BlobPeek) -> dict[str, Any]:
    return {"stored_bytes": seen.size, "ttl": seen.ttl, "age": seen.age}


def _holders(store: Store, digest: Digest) -> _Holders:
    account = hold_tracking_of(store)
    if account is None:
        return _Holders(None, [])
    [count] = account.count_holders([digest])
    if count > _NAMED:
        return _Holders(count, [])
    found = holders_of(store, digest) or {}
    longest = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return _Holders(len(found), [(name, human_duration(left)) for name, left in longest[:_SHOWN]])


ROUTES = [
    Route("/blobs/{digest}", _blob, name="blob"),
    Route("/blobs/{digest}/remove", _remove_page, name="remove_page"),
    Route("/blobs/{digest}/remove", _remove, methods=["POST"], name="remove"),
]
