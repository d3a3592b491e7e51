"""Pages that describe a blob, a reference, or a task, and that remove a blob."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from offload.dashboard.rendering import render
from offload.dashboard.security import read_form, root_of
from offload.dashboard.state import state_of
from offload.digest import Digest, parse_digest
from offload.errors import BlobMissing, OffloadError, StoreUnavailable
from offload.inspect.blobs import digest_prefix, find_digest, holders_of, is_ref, remove_blobs
from offload.inspect.value_list import describe_holders
from offload.stores.capabilities import BlobPeek, blob_inspection_of, hold_tracking_of
from offload.stores.protocols import Store
from offload.text import human_duration, human_size

_MAX_ASKED = 300  # characters of a digest or task id
_NAMED = 1000  # a blob with more holders than this shows only their number
_SHOWN = 100  # holders and chunks that are shown
_MAX_TEXT = 500  # characters of a fact
_MAX_ITEMS = 50  # items of a list in a fact
_LABELS = {"ttl": "Expires in", "date_done": "Finished", "content_bytes": "Bytes"}

_KINDS = {"root": "manifest"}

_Facts = list[tuple[str, str]]


async def _look_up(request: Request) -> Response:
    """Redirect to the page that shows the result; see `Stored.remember` for references."""
    form = await read_form(request)
    what = form.get("what", "").strip()
    if is_ref(what):
        asked = {"ref": state_of(request).stored.remember(what)}
    else:
        asked = {"what": what[:_MAX_ASKED]}
    root = root_of(request.scope)
    return RedirectResponse(f"{root}/lookup?{urlencode(asked)}", 303)


def _lookup(request: Request) -> Response:
    what = request.query_params.get("what", "").strip()[:_MAX_ASKED]
    name = request.query_params.get("ref", "")
    stored = state_of(request).stored
    if is_ref(what):
        return _lookup_page(
            request, "", {}, "Use the form to look up a reference; an address must not contain one."
        )
    ref = stored.remembered(name) if name else None
    if name and ref is None:
        return _lookup_page(
            request, "", {}, "This reference is no longer remembered: look it up again."
        )
    if not what and ref is None:
        return _lookup_page(request, "", {})
    try:
        prefix = None if ref is not None else digest_prefix(what)
        if prefix is not None:
            try:
                root = root_of(request.scope)
                return RedirectResponse(f"{root}/blobs/{find_digest(stored.store, prefix)}", 303)
            except BlobMissing:
                pass  # a task id may also consist of hexadecimal digits
        return _lookup_page(request, what, stored.described(what if ref is None else ref))
    except StoreUnavailable:
        raise
    except OffloadError as exc:
        return _lookup_page(request, what, {}, str(exc))


def _lookup_page(
    request: Request, what: str, described: Mapping[str, Any], error: str = ""
) -> Response:
    """Show a description, with a section of its own for a task's result."""
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
        facts=_facts_of(_plain(described)),
        result=_facts_of(_plain(result)) if isinstance(result, Mapping) else None,
        digest=value.get("digest"),
        preview=None if preview is None else _preview_of(preview),
        held="?" + urlencode({"by": task}) if task else "",
    )


def _plain(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that have no section of their own."""
    left = {**described}
    for name in ("what", "preview", "chunks", "holders"):
        left.pop(name, None)
    if isinstance(left.get("result"), Mapping):
        del left["result"]
    return left


@dataclass(frozen=True)
class _Holders:
    """The holders of a blob.

    Attributes:
        count: their number; None if the store doesn't track holds.
        named: holders and time left, longest first; empty if there are too many to list.
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
    holders = _holders(stored.store, digest)
    preview: _Preview | None = _preview_of(described["preview"]) if "preview" in described else None
    return render(
        request,
        "blob.html",
        title=_name(described),
        digest=digest,
        lead=_lead(described, holders, seen.ttl),
        facts=_facts_of({**plain, **_stored(seen)}),
        broken=broken,
        holders=holders,
        chunks=chunks[:_SHOWN],
        chunk_count=len(chunks),
        preview=preview,
        allow_delete=state_of(request).allow_delete,
    )


def _name(described: Mapping[str, Any]) -> str:
    """Return the type and size of a blob's content, such as ``DataFrame, 20.9 MB``."""
    if described.get("kind") != "root":
        size = described.get("content_bytes")
        return "Blob" if size is None else f"Chunk, {human_size(size)}"
    preview = described.get("preview", {})
    return f"{preview.get('type') or 'Value'}, {human_size(described['value_bytes'])}"


def _lead(described: Mapping[str, Any], holders: _Holders, ttl: float) -> str:
    """Describe in a sentence what a blob is, who holds it, and until when."""
    root = described.get("kind") == "root"
    what = "A value" if root else "A piece of values"
    if holders.named:
        used = f" used by {describe_holders(name for name, _ in holders.named)}"
        if holders.count is not None and holders.count > len(holders.named):
            used += " and others"
    elif holders.count:
        used = f" with {holders.count:,} holders"
    else:
        used = "" if holders.count is None else " that nothing uses"
    left = human_duration(ttl)
    end = (
        "is kept until it is unpinned"
        if left == "forever"
        else (f"expires in {left}, unless it is held longer")
    )
    return f"{what}{used}. It {end}."


def _remove_page(request: Request) -> Response:
    """Ask for confirmation before a blob is removed."""
    digest = _digest_to_remove(request)
    store = state_of(request).stored.store
    [seen] = blob_inspection_of(store).peek([digest], 1)
    if seen is None:
        return _gone(request, digest)
    return _ask_to_remove(request, digest, _holders(store, digest))


async def _remove(request: Request) -> Response:
    digest = _digest_to_remove(request)
    form = await read_form(request)
    return await run_in_threadpool(_remove_blob, request, digest, form.get("force") == "yes")


def _remove_blob(request: Request, digest: Digest, force: bool) -> Response:
    stored = state_of(request).stored
    if remove_blobs(stored.store, [digest], force=force):
        return _ask_to_remove(request, digest, _holders(stored.store, digest), status=409)
    stored.changed()
    root = root_of(request.scope)
    return RedirectResponse(f"{root}/blobs?{urlencode({'removed': digest})}", 303)


def _ask_to_remove(
    request: Request, digest: Digest, holders: _Holders, status: int = 200
) -> Response:
    return render(
        request,
        "remove.html",
        status,
        title="Remove a blob?",
        digest=digest,
        holders=holders,
        stays=status == 409,
    )


def _digest_to_remove(request: Request) -> Digest:
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


def _stored(seen: BlobPeek) -> dict[str, Any]:
    return {"stored_bytes": seen.size, "ttl": seen.ttl, "age": seen.age}


def _holders(store: Store, digest: Digest) -> _Holders:
    tracking = hold_tracking_of(store)
    if tracking is None:
        return _Holders(None, [])
    [count] = tracking.count_holders([digest])
    if count > _NAMED:
        return _Holders(count, [])
    found = holders_of(store, digest) or {}
    longest = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return _Holders(len(found), [(name, human_duration(left)) for name, left in longest[:_SHOWN]])


@dataclass(frozen=True)
class _Preview:
    """A preview.

    Attributes:
        facts: labels and texts about the value.
        text: the value's first characters; None if not shown.
        cut: whether *text* is incomplete.
        why: why *text* isn't shown.
    """

    facts: _Facts
    text: str | None
    cut: bool
    why: str


def _facts_of(described: Mapping[str, Any]) -> _Facts:
    """Return the known facts, with readable names."""
    return [
        (_LABELS.get(name, name.replace("_", " ").capitalize()), _format(name, value))
        for name, value in described.items()
        if value is not None and value not in ([], {})
    ]


def _preview_of(described: Mapping[str, Any]) -> _Preview:
    """Convert a preview that `describe_preview` returned."""
    rest = {**described}
    text, cut, why = (rest.pop(name, None) for name in ("text", "cut", "not_shown"))
    return _Preview(_facts_of(rest), None if text is None else str(text), bool(cut), str(why or ""))


def _format(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return _format_number(name, value)
    if isinstance(value, Mapping):
        return _join(f"{key}: {_format(str(key), item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        if name == "buffers":
            return _join(map(human_size, value))
        if name == "columns":  # pairs of name and dtype
            return _join(
                " ".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item)
                for item in value
            )
        return _join(_format(name, item) for item in value)
    return _KINDS.get(value, str(value)[:_MAX_TEXT]) if name == "kind" else str(value)[:_MAX_TEXT]


def _format_number(name: str, value: float) -> str:
    if name.endswith("bytes"):
        size = human_size(int(value))
        return f"{size} ({value:,} bytes)" if value >= 1000 else size
    if name in {"ttl", "age"}:
        return human_duration(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _join(texts: Iterable[str]) -> str:
    rest = iter(texts)
    some = [text[:_MAX_TEXT] for text in islice(rest, _MAX_ITEMS)]
    return ", ".join(some) + (", …" if next(rest, None) is not None else "")


ROUTES = [
    Route("/lookup", _lookup, name="lookup"),
    Route("/lookup", _look_up, methods=["POST"], name="look_up"),
    Route("/blobs/{digest}", _blob, name="blob"),
    Route("/blobs/{digest}/remove", _remove_page, name="remove_page"),
    Route("/blobs/{digest}/remove", _remove, methods=["POST"], name="remove"),
]
