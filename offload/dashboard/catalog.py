"""Catalog pages: the list of objects, and one object with its versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

from packaging.version import Version
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.catalog import Record
from offload.catalog.names import DEFAULT
from offload.dashboard.overview import time_range_of
from offload.dashboard.rendering import Column, Table, moment, render
from offload.dashboard.state import Objects, state_of
from offload.dashboard.statistics import TIME_RANGES
from offload.inspect.catalog import INSPECTED, ObjectState, VersionState, objects_of
from offload.metrics.report import Usage
from offload.text import UNKNOWN, human_number, human_size

_METADATA = 200  # characters shown in a row


def _object_path(record: Record) -> str:
    return "/object?" + urlencode({"bucket": record.bucket, "name": record.name})


def _metadata(record: Record) -> str:
    if record.metadata is None:
        return UNKNOWN
    text = json.dumps(record.metadata, ensure_ascii=False)
    return text if len(text) <= _METADATA else f"{text[:_METADATA]}…"


_OBJECTS: list[Column[ObjectState]] = [
    Column(
        "name",
        "Name",
        lambda state: state.name,
        lambda state: state.name,
        wide=True,
        link=lambda state: _object_path(state.latest),
    ),
    Column("latest", "Latest", lambda state: state.latest.version, wide=True),
    Column.figure("versions", "Versions", lambda state: state.versions, human_number),
    Column(
        "type",
        "Type",
        lambda state: state.latest.type,
        lambda state: state.latest.type,
        wide=True,
    ),
    Column.figure("size", "Size", lambda state: state.latest.size, human_size, "latest version"),
    Column.figure(
        "all",
        "Total size",
        lambda state: state.size,
        human_size,
        "all versions, serialized; shared content is counted once per version",
    ),
    Column(
        "saved",
        "Latest saved",
        lambda state: moment(state.latest.created),
        lambda state: state.latest.created,
    ),
    Column("metadata", "Metadata", lambda state: _metadata(state.latest), wide=True),
]


def _blob_path(state: VersionState) -> str:
    return "/blobs/" + quote(str(state.record.digest or ""))


_VERSIONS: list[Column[VersionState]] = [
    Column(
        "version",
        "Version",
        lambda state: state.record.version,
        lambda state: Version(state.record.version),
        wide=True,
    ),
    Column("tags", "Tags", lambda state: ", ".join(state.record.tags) or UNKNOWN, wide=True),
    Column("type", "Type", lambda state: state.record.type, wide=True),
    Column.figure("size", "Size", lambda state: state.record.size, human_size, "serialized"),
    Column.figure(
        "stored",
        "Stored",
        lambda state: state.stored,
        human_size,
        "size of its blobs, after compression",
    ),
    Column.figure(
        "shared",
        "Shared",
        lambda state: state.shared,
        human_size,
        "part of this that other versions of the object also use",
    ),
    Column.figure("blobs", "Blobs", lambda state: state.blobs, human_number),
    Column(
        "saved",
        "Saved",
        lambda state: moment(state.record.created),
        lambda state: state.record.created,
    ),
    Column("author", "Saved by", lambda state: state.record.author, wide=True),
    Column("metadata", "Metadata", lambda state: _metadata(state.record), wide=True),
    Column(
        "content",
        "Content",
        lambda state: str(state.record.digest or UNKNOWN)[:11],
        wide=True,
        link=_blob_path,
    ),
]


def _catalog(request: Request) -> Response:
    catalog = state_of(request).catalog
    bucket = request.query_params.get("bucket", DEFAULT)
    buckets = catalog.buckets()
    records = catalog.records(bucket) if bucket in buckets else []
    matches = _search(request.query_params.get("q", ""))
    time_range = time_range_of(request)
    return render(
        request,
        "catalog.html",
        title="Catalog",
        bucket=bucket,
        buckets=buckets,
        time_range=time_range,
        time_ranges=TIME_RANGES,
        total=state_of(request).statistics.report(time_range).total,
        table=Table.of(
            request.query_params,
            [*_OBJECTS, *_use_columns(catalog)],
            filter(matches, objects_of(records)),
            caption="Objects",
            identify=lambda state: state.name,
            sort="name",
            descending=False,
            empty='No objects yet: save one with app.offload.catalog.save("name", value).',
        ),
    )


def _use_columns(catalog: Objects) -> list[Column[ObjectState]]:
    def used(state: ObjectState) -> Usage:
        return catalog.usage(state.latest.bucket, state.name)

    return [
        Column.figure(
            "used",
            "Used",
            lambda state: used(state).uses,
            human_number,
            "loads, references for tasks, and late arguments; all versions, last 90 days",
        ),
        Column(
            "last",
            "Last used",
            lambda state: _last_use(used(state)),
            lambda state: used(state).last or 0.0,
        ),
    ]


def _last_use(used: Usage) -> Any:
    return UNKNOWN if used.last is None else moment(used.last)


def _search(text: str) -> Callable[[ObjectState], bool]:
    """Return a predicate for objects that match every word of *text*.

    ``type=DataFrame`` matches the type of the latest version; any other ``key=value`` matches its
    metadata, with the value compared as text or as JSON; and any other word matches part of the
    name.
    """
    conditions = [_condition(word) for word in text.split()]
    return lambda state: all(matches(state) for matches in conditions)


def _condition(word: str) -> Callable[[ObjectState], bool]:
    key, equals, value = word.partition("=")
    if not equals or not key:
        part = word.casefold()
        return lambda state: part in state.name.casefold()
    if key == "type":
        return lambda state: state.latest.type == value
    return lambda state: _has(state.latest.metadata, key, value)


def _has(metadata: Any, key: str, value: str) -> bool:
    if not isinstance(metadata, dict) or key not in metadata:
        return False
    found = metadata[key]
    return found == value or json.dumps(found, ensure_ascii=False) == value


def _object(request: Request) -> Response:
    name = request.query_params.get("name", "")
    bucket = request.query_params.get("bucket", DEFAULT)
    versions = state_of(request).catalog.versions(bucket, name)
    used = state_of(request).catalog.usage(bucket, name)
    table = Table.of(
        request.query_params,
        _VERSIONS,
        versions,
        caption="Versions",
        identify=lambda state: state.record.version,
        sort="version",
    )
    return render(
        request,
        "object.html",
        title=name or "(none)",
        bucket=bucket,
        inspected=INSPECTED if len(versions) > INSPECTED else 0,
        problems={each.record.version: each.problem for each in versions if each.problem},
        size=sum(each.record.size for each in versions),
        used=used,
        last_used=_last_use(used),
        table=table,
    )


ROUTES = [
    Route("/catalog", _catalog, name="catalog"),
    Route("/object", _object, name="object"),
]
