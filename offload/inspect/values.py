"""Describe a reference, a blob, or a task without decoding its value; list types."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from celery import states
from celery.backends.base import DisabledBackend

from offload.catalog.late import pin
from offload.digest import Digest
from offload.errors import (
    BlobMissing,
    ConfigurationError,
    InvalidRef,
    OffloadError,
    StoreUnavailable,
)
from offload.hooks.runtime import Runtime, results_as_refs
from offload.inspect.blobs import digest_prefix, find_digest, holders_of, is_ref
from offload.inspect.content import BlobContent, read_content
from offload.inspect.preview import preview
from offload.ref import Ref
from offload.serializers.library_internals import json_types
from offload.serializers.types.registry import BUILT_IN, full_name, registered_types
from offload.stores.capabilities import BlobPeek, blob_inspection_of
from offload.text import human_size, human_time, short_repr

_UNKNOWN = (
    "the result backend doesn't know this task: it is queued or running, its result expired or "
    "isn't stored, or it doesn't exist. References in a queued message can't be looked up. Check "
    "the ID, and ask the workers with `celery inspect query_task`"
)
_FACTS = ("name", "date_done", "worker", "queue", "retries", "parent_id")

_TEXT = 400  # characters of a preview's text


def describe(runtime: Runtime, what: str) -> dict[str, Any]:
    """Describe a reference, a blob, or a task as plain data, with holders and their times left.

    Values aren't decoded, and nothing in them runs. Text is untrusted: escape it before showing it.
    The key ``what`` says which of the three it is. The description of a task includes its result,
    and that of a reference includes the value; a late reference stands for its current value.

    Args:
        what: the text of a reference, a digest or at least its first 8 digits, or a task ID.

    Raises BlobMissing, IntegrityError, StoreUnavailable; InvalidRef for a reference of another app
    or an ambiguous prefix.
    """
    if is_ref(what):
        ref = runtime.content.open(what)
        if ref.late is None:
            return {"what": "reference", **_ref(runtime, ref)}
        (found,) = pin(runtime.content, [ref.late])
        if isinstance(found, OffloadError):
            raise found
        late = f"{ref.late.name}@{ref.late.version}"
        return {"what": "reference", "late": late, **_ref(runtime, found)}
    prefix = digest_prefix(what)
    if prefix is None:
        return _task(runtime, what)
    try:
        digest = find_digest(runtime.store, prefix)
    except BlobMissing:
        task = _task(runtime, what)  # a task ID may also consist of hexadecimal digits
        if task["state"] != "PENDING":
            return task
        raise
    return {"what": "blob", **_blob(runtime, digest)}


def _task(runtime: Runtime, task_id: str) -> dict[str, Any]:
    described = describe_task(runtime, task_id)
    result = described.pop("result_ref", None)
    if isinstance(result, Ref):
        described["result"] = _ref(runtime, result)
    return {"what": "task", **described}


def _ref(runtime: Runtime, ref: Ref[Any]) -> dict[str, Any]:
    """Describe a verified reference."""
    described = {
        "type": ref.type,
        "serializer": ref.serializer,
        "value_bytes": ref.size,
        "created": human_time(ref.created),
        "until": human_time(ref.until),
    }
    if ref.data is not None:
        content = read_content(
            runtime.store, None, data=ref.data, size=ref.size, cipher=runtime.content.cipher
        )
        return {"digest": None, **described, "inline": True, "preview": describe_preview(content)}
    assert ref.digest is not None  # noqa: S101 (for the type checker: it has one or the other)
    try:
        return {**described, **_blob(runtime, ref.digest, ref)}
    except BlobMissing as exc:
        return {"digest": ref.digest, **described, "missing": str(exc)}


def _blob(runtime: Runtime, digest: Digest, ref: Ref[Any] | None = None) -> dict[str, Any]:
    store = runtime.store
    [seen] = blob_inspection_of(store).peek([digest], 1)
    size = None if ref is None else ref.size
    content = read_content(store, digest, size=size, cipher=runtime.content.cipher)
    by_content = describe_content(content)
    described = {
        "digest": digest,
        "store": store.url,
        "kind": by_content.pop("kind"),
        **_seen(seen),
        "holders": holders_of(store, digest),
        **by_content,
    }
    if content.manifest is not None:
        described["preview"] = describe_preview(content)
    return described


def _seen(seen: BlobPeek | None) -> dict[str, Any]:
    if seen is None:
        return {"stored_bytes": None, "ttl": None, "age": None}
    return {"stored_bytes": seen.size, "ttl": seen.ttl, "age": seen.age}


def describe_content(content: BlobContent) -> dict[str, Any]:
    """Describe the content of a blob as plain data; it never changes, so you may cache it."""
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


def describe_preview(content: BlobContent) -> dict[str, Any]:
    """Describe the start of a value as plain data; *content* is the content of its root.

    May fetch chunks. Raises BlobMissing, IntegrityError, StoreUnavailable.
    """
    manifest = content.manifest
    assert manifest is not None  # noqa: S101 (for the type checker: it is a root blob)
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


def json_finite(described: Any) -> Any:
    """Replace infinity, which JSON lacks, with None."""
    if isinstance(described, dict):
        return {key: json_finite(value) for key, value in described.items()}
    if isinstance(described, float) and not math.isfinite(described):
        return None
    return described


def describe_task(runtime: Runtime, task_id: str) -> dict[str, Any]:
    """Describe a task as plain data; ``result_ref`` is its result if that is a reference.

    Raises ConfigurationError if there is no result backend, and StoreUnavailable.
    """
    with results_as_refs():
        meta = _meta(runtime, task_id)
        state = str(meta.get("status"))
        described: dict[str, Any] = {"task": task_id, "state": state}
        if state == states.PENDING:
            return {**described, "not_known": _UNKNOWN}
        facts = {name: _plain(meta[name]) for name in _FACTS if meta.get(name) is not None}
        described |= {**facts, **_arguments(meta)}
        failure = _failure_ref(meta)
        if failure is not None:
            return {**described, "result_ref": failure}
        try:
            result = meta.get("result")
        except InvalidRef as exc:
            return {**described, "result": f"refused: {exc}"}
    if isinstance(result, Ref) and not result.is_local:
        return {**described, "result_ref": result}
    if state == states.SUCCESS:
        return {**described, "result": f"in the result backend: {short_repr(result)}"}
    return {**described, "result": short_repr(result)}


def _failure_ref(meta: Mapping[str, Any]) -> Ref[Any] | None:
    """Return the reference of a large failure; None if there is none, or if it is invalid."""
    if meta["status"] not in states.EXCEPTION_STATES or not hasattr(type(meta), "ref"):
        return None
    try:
        found = meta.ref  # type: ignore[attr-defined]
    except InvalidRef:
        return None
    return found if isinstance(found, Ref) else None


def _meta(runtime: Runtime, task_id: str) -> Mapping[str, Any]:
    backend = runtime.app.backend
    if isinstance(backend, DisabledBackend):
        raise ConfigurationError(
            f"{task_id[:100]!r} is neither a digest nor a reference, and tasks can't be looked up: "
            "the app has no result backend (result_backend)"
        )
    try:
        meta: Mapping[str, Any] = backend.get_task_meta(task_id)
    except OffloadError:
        raise
    except Exception as exc:  # each backend raises errors of its own
        raise StoreUnavailable(
            f"result backend {backend.as_uri()} unavailable: {type(exc).__name__}: {exc}"
        ) from exc
    return meta


def _arguments(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the stored arguments that are references (``result_extended``)."""
    args, kwargs = meta.get("args"), meta.get("kwargs")
    named: list[tuple[str, Any]] = []
    if isinstance(args, (list, tuple)):
        named += [(f"args[{at}]", value) for at, value in enumerate(args)]
    if isinstance(kwargs, Mapping):
        named += [(str(key), value) for key, value in kwargs.items()]
    found = {
        name: f"{value.type} of {human_size(value.size)}, {value.digest or 'inside its reference'}"
        for name, value in named
        if isinstance(value, Ref)
    }
    return {"arguments": found} if found else {}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float)) else str(value)


@dataclass(frozen=True)
class SupportedType:
    """A type that offload can serialize, and how.

    Attributes:
        name: its name in stored data; for types registered with kombu, their marker.
        type: module and qualified name; "" if its package isn't imported.
        version: version of its data; None if it has none.
        how: ``encode and decode``, ``dataclass``, ``pydantic model``, ``enum``, an extra of
            offload, Celery's JSON, or ``pickle``.
        active: whether this process can serialize it now.
        advice: how to make it active; "" if it is.
    """

    name: str
    type: str
    version: int | None
    how: str
    active: bool = True
    advice: str = ""


def supported_types(accepted: Collection[str]) -> list[SupportedType]:
    """Return the registered types, those that need an import, and how other types are serialized.

    Args:
        accepted: names of the serializers that the app accepts, as Celery names them.

    Raises ConfigurationError if a type in ``offload_types`` can't be loaded.
    """
    own = registered_types()
    found = [SupportedType(each.name, full_name(each.type), each.version, each.how) for each in own]
    names = {each.name for each in own}
    for built_in in BUILT_IN.values():
        found += [
            SupportedType(
                name, "", None, f"offload[{built_in.extra}]", False, f"import {built_in.imported}"
            )
            for name in built_in.types
            if name not in names and not any(each.type == name for each in found)
        ]
    found += [SupportedType(name, "", None, "kombu's register_type") for name in json_types()]
    if "pickle" in accepted:
        found.append(SupportedType("any other", "", None, "pickle"))
    return found
