"""The page of all blobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.caching import Refreshed
from offload.dashboard.rendering import Chart, Column, Table, number_of, render
from offload.dashboard.state import state_of
from offload.dashboard.stored import Kind, Stored
from offload.digest import Digest, parse_digest
from offload.errors import OffloadError
from offload.inspect.blobs import Row, partial_prefix, stored_sizes
from offload.inspect.snapshot import Bucket, Query, Snapshot
from offload.stores.protocols import Store
from offload.text import human_duration, human_size, parse_size, short_digest

_PAGE = 50  # blobs per page; the page reads the first bytes of each
_LONGEST = 300  # characters of a filter that are used


_UNKNOWN = Kind("-", part=False, age=None)
_GONE = Kind("no longer stored", part=False, age=None)


@dataclass(frozen=True)
class _Line:
    """A row of the table.

    Attributes:
        left: seconds until it expires, as of the snapshot.
        shared: number of values that contain it; None if not counted.
    """

    row: Row
    left: float
    kind: Kind
    shared: int | None


@dataclass(frozen=True)
class _Asked:
    """Filters from the query string, and messages about invalid ones."""

    query: Query
    holder: str
    shared: bool
    wrong: list[str]


def _blobs(request: Request) -> Response:
    stored = state_of(request).stored
    kept = stored.blobs()
    if kept.value is None and kept.error is not None:
        raise kept.error
    snapshot = kept.value
    notes: list[str] = []
    table = None
    charts: list[Chart] = []
    asked = _asked(request.query_params)
    if snapshot is not None:
        table, notes = _table(request.query_params, stored, kept, asked)
        charts = [
            _bars("sizes", "stored size", _sizes(snapshot.by_size), snapshot.by_size),
            _bars("ends", "expiry", _ends(snapshot.by_expiry), snapshot.by_expiry),
        ]
    return render(
        request,
        "blobs.html",
        title="Blobs",
        kept=kept,
        totals=None if snapshot is None else snapshot.totals,
        notes=[*asked.wrong, *notes],
        removed=_removed(request.query_params, stored.store),
        asked=asked,
        table=table,
        charts=charts,
    )


def _asked(query: QueryParams) -> _Asked:
    wrong: list[str] = []
    text, larger = query.get("q", "").strip(), query.get("larger", "").strip()
    prefix = partial_prefix(text.lower())
    if prefix is None:
        wrong.append(
            f"No digest starts with {text[:_LONGEST]}. If it is a task id, look it up above."
        )
    size = parse_size(larger) if larger else None
    if larger and size is None:
        wrong.append(f"{larger[:_LONGEST]} is not a size such as 500kB or 1.5MB.")
    sort = query.get("sort", "")
    given = sort in _SORTED
    return _Asked(
        Query(
            sort=sort if given else "size",
            descending=query.get("desc") == "1" if given else None,
            prefix=prefix or "",
            larger_than=size,
            held={"yes": True, "no": False}.get(query.get("held", "")),
        ),
        query.get("by", "").strip()[:_LONGEST],
        query.get("shared") == "1",
        wrong,
    )


def _table(
    params: QueryParams, stored: Stored, kept: Refreshed[Snapshot], asked: _Asked
) -> tuple[Table[_Line], list[str]]:
    """Return the requested page of blobs, and notes to show above it."""
    snapshot = kept.value
    assert snapshot is not None  # noqa: S101 (for the type checker: the caller checks it)
    query, notes = _of_holders(stored, snapshot, asked)
    page = number_of(params, "page", 1)
    chosen = snapshot.select(query, (page - 1) * _PAGE, _PAGE)
    pages = max(-(-chosen.count // _PAGE), 1)
    if page > pages:
        page = pages
        chosen = snapshot.select(query, (page - 1) * _PAGE, _PAGE)
    shared = None
    if asked.shared:
        counted = stored.shared()
        shared = counted.value
        if counted.error is not None:
            notes.append(f"Values per chunk could not be counted: {counted.error}")
        elif shared is None:
            notes.append("Counting values per chunk…")
    kinds: list[Kind | None] = [_UNKNOWN] * len(chosen.rows)
    if kept.error is None:  # else the page would only wait for the store
        try:
            kinds = stored.kinds([row.digest for row in chosen.rows])
        except OffloadError as exc:
            notes.append(f"Types could not be read: {exc}")
    rows = [
        _Line(
            row,
            max(row.ttl - kept.age, 0.0),
            kind or _GONE,
            shared(row.digest) if shared is not None and (kind or _GONE).part else None,
        )
        for row, kind in zip(chosen.rows, kinds, strict=True)
    ]
    table = Table(
        "",
        "Blobs",
        _columns(snapshot, rows, counted=shared is not None),
        rows,
        lambda each: each.row.digest,
        query.sort,
        query.is_descending,
        chosen.count,
        page,
        pages,
        "No blobs yet: call a task with a large argument.",
    )
    return table, notes


def _of_holders(stored: Stored, snapshot: Snapshot, asked: _Asked) -> tuple[Query, list[str]]:
    """Return the query with its holder filters, and notes about those that can't be applied."""
    query = asked.query
    if not snapshot.knows_holders and (asked.holder or query.held is not None):
        url = stored.store.url
        note = f"{url} doesn't track holds, so this filter was ignored."
        return replace(query, held=None), [note]
    if not asked.holder:
        return query, []
    try:
        among = stored.held_by(snapshot, asked.holder)
    except OffloadError as exc:
        return replace(query, among=()), [f"Holders could not be read: {exc}"]
    none = [] if among else [f"{asked.holder} holds no blobs."]
    return replace(query, among=among), none


_SORTED = ("size", "expiry", "holders", "digest")


def _columns(snapshot: Snapshot, rows: Sequence[_Line], *, counted: bool) -> list[Column[_Line]]:
    aged = any(each.kind.age is not None for each in rows)
    columns: list[Column[_Line]] = [
        Column(
            "digest",
            "Digest",
            lambda each: short_digest(each.row.digest),
            lambda each: each.row.digest,
            wide=True,
            link=lambda each: f"/blobs/{each.row.digest}",
        ),
        Column(
            "kind",
            "Probable type",
            lambda each: each.kind.text,
            wide=True,
            hint="guessed from the first bytes",
        ),
        Column(
            "size",
            "Stored",
            lambda each: human_size(each.row.size),
            lambda each: each.row.size,
            hint="after compression",
        ),
        Column(
            "expiry",
            "Expires in",
            lambda each: human_duration(each.left),
            lambda each: each.row.ttl,
            hint="if no hold is renewed or added",
        ),
    ]
    if snapshot.knows_holders:
        columns.append(
            Column(
                "holders",
                "Holders",
                lambda each: f"{each.row.holders or 0:,}",
                lambda each: each.row.holders or 0,
                hint="messages, results, pins, and puts that need the blob",
            )
        )
    if aged:
        columns.append(Column("age", "Age", lambda each: human_duration(each.kind.age)))
    if counted:
        columns.append(
            Column(
                "shared",
                "In values",
                lambda each: "–" if each.shared is None else f"{each.shared:,}",  # noqa: RUF001
                hint="number of values that contain this chunk",
            )
        )
    return columns


def _removed(query: QueryParams, store: Store) -> Digest | None:
    """Return the blob that the query string says was just removed; None if it still exists."""
    try:
        digest = parse_digest(query.get("removed", ""))
        return None if stored_sizes(store, [digest]) else digest
    except (ValueError, OffloadError):
        return None


def _bars(name: str, what: str, labels: Sequence[str], buckets: Sequence[Bucket]) -> Chart:
    counts = [bucket.count for bucket in buckets]
    return Chart(
        name,
        f"Blobs by {what}",
        labels,
        {"blobs": counts},
        heading=what.rpartition(" ")[2].capitalize(),
    )


def _sizes(buckets: Sequence[Bucket]) -> list[str]:
    return _labels([human_size(bucket.below) for bucket in buckets[:-1]])


def _ends(buckets: Sequence[Bucket]) -> list[str]:
    return _labels([human_duration(bucket.below) for bucket in buckets[:-1]])


def _labels(edges: Sequence[str]) -> list[str]:
    plain = [edge.replace(".0 ", " ") for edge in edges]
    return [*(f"under {edge}" for edge in plain), f"{plain[-1]} or more"]


ROUTES = [Route("/blobs", _blobs, name="blobs")]
