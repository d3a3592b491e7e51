"""The values page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.rendering import Chart, Column, Table, number_of, render
from offload.dashboard.state import state_of
from offload.dashboard.stored import Stored
from offload.digest import Digest
from offload.errors import OffloadError
from offload.inspect.value_list import SORTS, Value, ValueList, ValueQuery
from offload.text import UNKNOWN, human_duration, human_size, parse_size, short_digest

_PAGE = 50  # values per page; the page reads the holders of each
_LONGEST = 300  # characters of a filter that are used
_TYPES = 8  # bars in the chart of types


@dataclass(frozen=True)
class _Line:
    """A row of the table.

    Attributes:
        used: describes its holders; "" if it has none.
        left: seconds until it expires, as of the snapshot.
    """

    value: Value
    used: str
    left: float


def _values(request: Request) -> Response:
    stored = state_of(request).stored
    kept = stored.values()
    if kept.value is None and kept.error is not None:
        raise kept.error
    found = kept.value
    notes: list[str] = []
    table = None
    if found is not None:
        query, notes = _asked(request.query_params, stored, found)
        table = _table(request.query_params, stored, found, query, kept.age, notes)
    return render(
        request,
        "values.html",
        title="Values",
        kept=kept,
        found=found,
        totals=None if found is None else found.snapshot.totals,
        notes=notes,
        table=table,
        charts=[] if found is None else [_types(found)],
    )


def _asked(params: QueryParams, stored: Stored, found: ValueList) -> tuple[ValueQuery, list[str]]:
    """Return the query from the address, and notes about filters that can't be applied."""
    notes: list[str] = []
    larger = params.get("larger", "").strip()
    size = parse_size(larger) if larger else None
    if larger and size is None:
        notes.append(f"{larger[:_LONGEST]} is not a size such as 500kB or 1.5MB.")
    sort = params.get("sort", "")
    given = sort in SORTS
    query = ValueQuery(
        sort=sort if given else "size",
        descending=params.get("desc") == "1" if given else None,
        type=params.get("type", "").strip()[:_LONGEST],
        larger_than=size,
        held={"yes": True, "no": False}.get(params.get("held", "")),
    )
    holder = params.get("by", "").strip()[:_LONGEST]
    if not found.snapshot.knows_holders and (holder or query.held is not None):
        notes.append(f"{stored.store.url} doesn't track holds, so this filter was ignored.")
        return replace(query, held=None), notes
    if holder:
        try:
            query = replace(query, among=stored.held_by(found.snapshot, holder))
        except OffloadError as exc:
            query = replace(query, among=())
            notes.append(f"Holders could not be read: {exc}")
        else:
            if not query.among:
                notes.append(f"{holder} holds no values.")
    return query, notes


def _table(
    params: QueryParams,
    stored: Stored,
    found: ValueList,
    query: ValueQuery,
    age: float,
    notes: list[str],
) -> Table[_Line]:
    page = number_of(params, "page", 1)
    chosen, count = found.select(query, (page - 1) * _PAGE, _PAGE)
    pages = max(-(-count // _PAGE), 1)
    if page > pages:
        page = pages
        chosen, count = found.select(query, (page - 1) * _PAGE, _PAGE)
    used: Mapping[Digest, str] = {}
    try:
        used = stored.users([each.row for each in chosen])
    except OffloadError as exc:
        notes.append(f"Holders could not be read: {exc}")
    lines = [
        _Line(each, used.get(each.row.digest, ""), max(each.row.ttl - age, 0.0)) for each in chosen
    ]
    return Table(
        "",
        "Values",
        _COLUMNS if found.snapshot.knows_holders else [c for c in _COLUMNS if c.name != "holders"],
        lines,
        lambda each: each.value.row.digest,
        query.sort,
        query.is_descending,
        count,
        page,
        pages,
        "No values yet: call a task with a large argument.",
    )


def _end(left: float) -> str:
    text = human_duration(left)
    return "kept until unpinned" if text == "forever" else f"in {text}"


_COLUMNS: list[Column[_Line]] = [
    Column(
        "type",
        "Value",
        lambda each: each.value.type or "?",
        lambda each: each.value.type,
        wide=True,
        hint="type, guessed from the first bytes",
        link=lambda each: f"/blobs/{each.value.row.digest}",
    ),
    Column(
        "size",
        "Size",
        lambda each: human_size(each.value.size),
        lambda each: each.value.size,
        hint="serialized, before compression",
    ),
    Column(
        "holders",
        "Used by",
        lambda each: each.used or "nothing",
        lambda each: each.value.row.holders or 0,
        wide=True,
        hint="tasks in queues or running, results, and pins that hold it",
    ),
    Column(
        "expiry",
        "Expires",
        lambda each: _end(each.left),
        lambda each: each.left,
        hint="when it expires if no hold is renewed or added",
    ),
    Column("digest", "Digest", lambda each: short_digest(each.value.row.digest), wide=True),
]


def _types(found: ValueList) -> Chart:
    shown = dict(list(found.by_type.items())[:_TYPES])
    return Chart(
        "types",
        f"The {_TYPES} most frequent types" if len(found.by_type) > _TYPES else "Values by type",
        [name or UNKNOWN for name in shown],
        {"values": list(shown.values())},
        heading="Type",
    )


ROUTES = [Route("/values", _values, name="values")]
