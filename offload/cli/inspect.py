"""``celery offload inspect``: what a reference, a blob or a task is, and who needs it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import click

from offload.cli.classes.told import moment
from offload.cli.context import hook_of
from offload.cli.named import digest_begin, find, is_ref, lasts
from offload.cli.output import print_json, print_rows
from offload.cli.tasks import told_of_task
from offload.content.looking import Content, content_of
from offload.digest import Digest
from offload.errors import BlobMissing
from offload.hooks.app import Offload
from offload.ref import Ref, human_size
from offload.serializers.preview import preview
from offload.stores.looking import Seen, looked

__all__ = ("inspect",)

_TEXT = 400  # characters of a preview
_SHOWN = 20  # chunks and holders that people are shown


@click.command()
@click.argument("what", metavar="REF|DIGEST|TASK-ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def inspect(ctx: click.Context, what: str, as_json: bool) -> None:
    """Show what a reference, a blob or a task is, and who needs it for how long.

    A digest may be its first 8 digits or more; a reference is its whole text (offload:1?…).
    Values are not decoded and nothing in them runs: of texts and JSON the beginning is shown, of
    arrays dtype and shape, of frames the columns, of pickles nothing. Of a task, what the
    result backend has is shown, and its result is not fetched. What only its message has, while
    that waits in a queue, nobody can look up.
    """
    hook = hook_of(ctx)
    told = _told(hook, what)
    if as_json:
        print_json(_finite(told))
    else:
        _print(told)


def _told(hook: Offload, what: str) -> dict[str, Any]:
    if is_ref(what):
        return {"what": "reference", **_ref(hook, hook.content.open(what))}
    begin = digest_begin(what)
    if begin is None:
        return _task(hook, what)
    try:
        digest = find(hook.store, begin)
    except BlobMissing:
        task = _task(hook, what)  # an id of hexadecimal digits
        if task["state"] != "PENDING":
            return task
        raise
    return {"what": "blob", **_blob(hook, digest)}


def _task(hook: Offload, task_id: str) -> dict[str, Any]:
    told = told_of_task(hook, task_id)
    result = told.pop("result_ref", None)
    if isinstance(result, Ref):
        told["result"] = _ref(hook, result)
    return {"what": "task", **told}


def _ref(hook: Offload, ref: Ref[Any]) -> dict[str, Any]:
    """Return what is told of a reference that was verified."""
    said = {
        "type": ref.type,
        "serializer": ref.serializer,
        "value_bytes": ref.size,
        "created": moment(ref.created),
        "until": moment(ref.until),
    }
    if ref.data is not None:
        content = content_of(hook.store, None, data=ref.data, size=ref.size)
        return {"digest": None, **said, "inline": True, "preview": _preview(content)}
    assert ref.digest is not None  # noqa: S101 (for the type checker: it has one or the other)
    try:
        return {**said, **_blob(hook, ref.digest, ref)}
    except BlobMissing as exc:
        return {"digest": ref.digest, **said, "missing": str(exc)}


def _blob(hook: Offload, digest: Digest, ref: Ref[Any] | None = None) -> dict[str, Any]:
    store = hook.store
    [seen] = looked(store).look([digest], 1)
    content = content_of(store, digest, size=None if ref is None else ref.size)
    manifest = content.manifest
    told: dict[str, Any] = {
        "digest": digest,
        "store": store.url,
        "kind": "chunk" if manifest is None else "root",
        **_seen(seen),
        "holders": dict(store.blobs.holders(digest)) if store.blobs.keeps_holds else None,
    }
    if manifest is None:
        return {**told, "content_bytes": content.size}
    return {
        **told,
        "serializer": manifest.serializer,
        "value_bytes": manifest.value_size,
        "buffers": list(manifest.sizes),
        "chunks": [{"digest": chunk.digest, "bytes": chunk.size} for chunk in manifest.chunks],
        "preview": _preview(content),
    }


def _seen(seen: Seen | None) -> dict[str, Any]:
    if seen is None:
        return {"stored_bytes": None, "ttl": None, "age": None}
    return {"stored_bytes": seen.size, "ttl": seen.ttl, "age": seen.age}


def _preview(content: Content) -> dict[str, Any]:
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


def _finite(told: Any) -> Any:
    """Return the same for JSON, which has no infinity: None is for ever."""
    if isinstance(told, dict):
        return {key: _finite(value) for key, value in told.items()}
    if isinstance(told, float) and not math.isfinite(told):
        return None
    return told


def _print(told: Mapping[str, Any]) -> None:
    print_rows(_rows(told))


def _rows(told: Mapping[str, Any], indent: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in told.items():
        label = indent + name.replace("_", " ")
        if name == "holders":
            rows += _holders(value, label)
        elif name == "chunks":
            rows += _listed(
                label, [f"{each['digest']}  {human_size(each['bytes'])}" for each in value]
            )
        elif name == "buffers":
            rows += _listed(label, [human_size(size) for size in value], together=True)
        elif name == "columns":
            rows += _listed(label, [f"{name or '?'} {dtype}" for name, dtype in value], True)
        elif isinstance(value, Mapping):
            rows += [(label, ""), *_rows(value, indent + "  ")]
        elif isinstance(value, list):
            rows += _listed(label, list(map(str, value)), together=True)
        elif value is not None and name != "cut":
            rows.append((label, _shown(name, value) + ("…" if _is_cut(name, told) else "")))
    return rows


def _is_cut(name: str, told: Mapping[str, Any]) -> bool:
    return name == "text" and bool(told.get("cut"))


def _shown(name: str, value: Any) -> str:
    if name.endswith("bytes"):
        return f"{human_size(value)} ({value:,} bytes)" if value >= 1000 else human_size(value)
    if name == "ttl":
        return lasts(value)
    if name == "age":
        return lasts(value)
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _holders(holders: Mapping[str, float] | None, label: str) -> list[tuple[str, str]]:
    if holders is None:
        return [(label, "not known: this store keeps no account of who needs what")]
    longest = sorted(holders.items(), key=lambda item: (-item[1], item[0]))
    return _listed(label, [f"{name}  for {lasts(left)}" for name, left in longest]) or [
        (label, "nobody")
    ]


def _listed(label: str, texts: list[str], together: bool = False) -> list[tuple[str, str]]:
    more = len(texts) - _SHOWN
    shown = texts[:_SHOWN] + ([f"… and {more:,} more (--json has all)"] if more > 0 else [])
    if together:
        return [(label, ", ".join(shown))] if shown else []
    return [(label if at == 0 else "", text) for at, text in enumerate(shown)]
