"""What a reference, a blob or a task is."""

from __future__ import annotations

import math
from typing import Any

from offload.catalog.blobs import BlobContent, read_content
from offload.catalog.naming import digest_begin, find, is_ref
from offload.catalog.preview import preview
from offload.catalog.removal import holders_of
from offload.catalog.tasks import told_of_task
from offload.catalog.times import moment
from offload.digest import Digest
from offload.errors import BlobMissing
from offload.hooks.runtime import Runtime
from offload.ref import Ref
from offload.stores.capabilities import BlobPeek, blob_inspection_of

__all__ = ("describe", "finite", "told_content", "told_preview")

_TEXT = 400  # characters of a preview


def describe(runtime: Runtime, what: str) -> dict[str, Any]:
    """Return what a reference, a blob or a task is, and who needs it for how long.

    Values are not decoded and nothing in them runs. Texts are as they were found: who shows them
    escapes them. ``what`` tells of which of the three it is; a result of a task and what a
    reference refers to are described within.

    Args:
        what: the text of a reference, a digest or 8 digits or more of its begin, or else the id of
            a task.

    Raises BlobMissing, IntegrityError; InvalidRef for a reference that is not this app's, or a
    begin that several digests have; StoreUnavailable.
    """
    if is_ref(what):
        return {"what": "reference", **_ref(runtime, runtime.content.open(what))}
    begin = digest_begin(what)
    if begin is None:
        return _task(runtime, what)
    try:
        digest = find(runtime.store, begin)
    except BlobMissing:
        task = _task(runtime, what)  # an id of hexadecimal digits
        if task["state"] != "PENDING":
            return task
        raise
    return {"what": "blob", **_blob(runtime, digest)}


def _task(runtime: Runtime, task_id: str) -> dict[str, Any]:
    told = told_of_task(runtime, task_id)
    result = told.pop("result_ref", None)
    if isinstance(result, Ref):
        told["result"] = _ref(runtime, result)
    return {"what": "task", **told}


def _ref(runtime: Runtime, ref: Ref[Any]) -> dict[str, Any]:
    """Return what is told of a reference that was verified."""
    said = {
        "type": ref.type,
        "serializer": ref.serializer,
        "value_bytes": ref.size,
        "created": moment(ref.created),
        "until": moment(ref.until),
    }
    if ref.data is not None:
        content = read_content(runtime.store, None, data=ref.data, size=ref.size)
        return {"digest": None, **said, "inline": True, "preview": told_preview(content)}
    assert ref.digest is not None  # noqa: S101 (for the type checker: it has one or the other)
    try:
        return {**said, **_blob(runtime, ref.digest, ref)}
    except BlobMissing as exc:
        return {"digest": ref.digest, **said, "missing": str(exc)}


def _blob(runtime: Runtime, digest: Digest, ref: Ref[Any] | None = None) -> dict[str, Any]:
    store = runtime.store
    [seen] = blob_inspection_of(store).peek([digest], 1)
    content = read_content(store, digest, size=None if ref is None else ref.size)
    told = told_content(content)
    said = {
        "digest": digest,
        "store": store.url,
        "kind": told.pop("kind"),
        **_seen(seen),
        "holders": holders_of(store, digest),
        **told,
    }
    return said if content.manifest is None else {**said, "preview": told_preview(content)}


def told_content(content: BlobContent) -> dict[str, Any]:
    """Return what a blob is by its content, which never changes."""
    manifest = content.manifest
    if manifest is None:
        return {"kind": "chunk", "content_bytes": content.size}
    return {
        "kind": "root",
        "serializer": manifest.serializer,
        "value_bytes": manifest.value_size,
        "buffers": list(manifest.sizes),
        "chunks": [{"digest": chunk.digest, "bytes": chunk.size} for chunk in manifest.chunks],
    }


def _seen(seen: BlobPeek | None) -> dict[str, Any]:
    if seen is None:
        return {"stored_bytes": None, "ttl": None, "age": None}
    return {"stored_bytes": seen.size, "ttl": seen.ttl, "age": seen.age}


def told_preview(content: BlobContent) -> dict[str, Any]:
    """Return how a value begins; *content* is that of the root of one.

    Raises BlobMissing, IntegrityError, StoreUnavailable: chunks may have to be fetched.
    """
    manifest = content.manifest
    assert manifest is not None  # noqa: S101 (for the type checker: roots only come here)
    first = content.first
    found = preview(
        manifest.serializer,
        content.head(),
        list(manifest.sizes[first:]),
        lambda number, limit: content.read(first + number, limit),
        _TEXT,
    )
    return {
        "type": found.kind,
        **found.facts,
        "text": found.text,
        "cut": found.cut,
        "not_shown": found.why or None,
    }


def finite(told: Any) -> Any:
    """Return the same for JSON, which has no infinity: None is for ever."""
    if isinstance(told, dict):
        return {key: finite(value) for key, value in told.items()}
    if isinstance(told, float) and not math.isfinite(told):
        return None
    return told
