"""Render pages, tables, and charts from templates, which escape all text."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from offload.dashboard.security import FIELD, path_of, root_of, sign, token_of
from offload.dashboard.state import state_of
from offload.dashboard.statistics import TIME_RANGES
from offload.text import (
    UNKNOWN,
    human_count,
    human_duration,
    human_latency,
    human_number,
    human_percent,
    human_ratio,
    human_size,
    human_time_saved,
)

T = TypeVar("T")

_ROWS = 100  # rows of a table on one page
_FILTERS = ("q", "type", "larger", "held", "by")  # query parameters that filter rows
_TIMED = ("/", "/tasks", "/catalog", "/estimate")  # pages with a time range
_NAVIGATION = {
    "/": "Overview",
    "/tasks": "Tasks",
    "/values": "Values",
    "/catalog": "Catalog",
    "/classes": "Classes",
    "/stores": "Stores",
    "/workers": "Workers",
    "/estimate": "Estimate",
}
"""Navigation labels by page path."""
_TABS = {
    "/task": "/tasks",
    "/blobs": "/values",
    "/lookup": "/values",
    "/object": "/catalog",
    "/class": "/classes",
    "/worker": "/workers",
}
"""Navigation entry to highlight on detail pages, by path prefix."""


def render(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    """Return a page with the HTTP status *status*.

    Args:
        template: the file name of the template.
        context: its variables; ``title`` is required.
    """
    page = _TEMPLATES.get_template(template).render(
        root=root_of(request.scope),
        path=path_of(request.scope),
        query=request.query_params,
        navigation=_navigation(request),
        tab=_tab(path_of(request.scope)),
        store=state_of(request).runtime.store.url,
        now=time.time(),
        form_field=FIELD,
        form_token=token_of(request),
        **context,
    )
    # Text from a store may contain lone surrogates, which UTF-8 can't encode.
    response = HTMLResponse(page.encode("utf-8", "replace"), status)
    sign(request, response)
    return response


def _navigation(request: Request) -> dict[str, str]:
    """Return navigation labels by address; addresses keep the selected time range."""
    since = request.query_params.get("since", "")
    kept = f"?since={since}" if since in TIME_RANGES else ""
    return {path + (kept if path in _TIMED else ""): name for path, name in _NAVIGATION.items()}


def _tab(path: str) -> str:
    """Return the path of the navigation entry to highlight for *path*."""
    if path in _NAVIGATION:
        return path
    return next((tab for start, tab in _TABS.items() if path.startswith(start)), "")


def moment(at: float | None) -> Markup | str:
    """Return a time (seconds since 1970) that the browser shows in its time zone; "-" for None."""
    if at is None:
        return UNKNOWN
    try:
        utc = datetime.fromtimestamp(at, timezone.utc)
    except (OverflowError, OSError, ValueError):  # times from a store can be anything
        return "?"
    return Markup('<time datetime="{}">{}</time>').format(
        utc.isoformat(timespec="seconds"), utc.strftime("%Y-%m-%d %H:%M:%S UTC")
    )


def ago(at: float | None, now: float) -> str:
    """Format how long ago a time was, such as ``12 s ago``; both in seconds since 1970."""
    return UNKNOWN if at is None else f"{human_duration(max(now - at, 0.0))} ago"


def _rate(number: float) -> str:
    """Format a rate, such as ``0``, ``0.4``, or ``12``."""
    return f"{number:,.0f}" if number >= 10 or number == 0 else f"{number:.1f}"


def _share(part: float | None) -> str:
    """Format a share to a tenth of a percent, rounding down to 99.9% anything below 100%."""
    if part is None:
        return UNKNOWN
    return "100%" if part == 1 else f"{min(part, 0.999):.1%}"


def _is_filtered(query: Mapping[str, str]) -> bool:
    """Return whether a filter is set, which may explain why there are no rows."""
    return any(query.get(name) for name in _FILTERS)


def _link(query: Mapping[str, str], **changed: object) -> str:
    """Return the page's address with some query parameters changed; None removes one."""
    given = {**query, **changed}
    return "?" + urlencode({name: value for name, value in given.items() if value is not None})


def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("offload.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        ago=ago,
        count=human_count,
        moment=moment,
        number=human_number,
        percent=human_percent,
        rate=_rate,
        seconds=human_latency,
        share=_share,
        size=human_size,
        span=human_duration,
        saved=human_time_saved,
        times=human_ratio,
        json=lambda value: json.dumps(value, separators=(",", ":")),
    )
    made.globals["link"] = _link
    made.globals["is_filtered"] = _is_filtered
    return made


_TEMPLATES = _templates()


@dataclass(frozen=True)
class Chart:
    """Lines over time, which the browser draws, or bars in a table.

    Attributes:
        name: identifies the chart on its page.
        title: its caption.
        x: labels of bars, or times of lines (seconds since 1970).
        series: numbers by label.
        unit: ``bytes``, ``seconds``, or "" for plain numbers.
        kind: ``lines`` or ``bars``.
        heading: column heading for the labels of bars.
    """

    name: str
    title: str
    x: Sequence[Any]
    series: Mapping[str, Sequence[float]]
    unit: str = ""
    kind: str = "bars"
    heading: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(any(numbers) for numbers in self.series.values())

    @property
    def data(self) -> dict[str, Any]:
        """Data for the browser to draw."""
        return {"x": list(self.x), "y": list(map(list, self.series.values())), "unit": self.unit}

    def share(self, number: float) -> str:
        """Return the length of a bar as a percentage of the longest."""
        longest = max((max(numbers, default=0) for numbers in self.series.values()), default=0)
        return f"{100 * max(number, 0) / longest:.2f}" if longest > 0 else "0"


def along_time(
    name: str,
    title: str,
    times: Sequence[float],
    series: Mapping[str, Sequence[float]],
    **more: Any,
) -> Chart:
    """Return a chart over times (seconds since 1970)."""
    return Chart(name, title, times, series, kind="lines", **more)


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of a table.

    Attributes:
        name: identifies it in addresses.
        label: its heading.
        show: returns the text of a row's cell.
        key: returns a row's sort key; None if the column can't be sorted by.
        wide: whether it contains text, aligned left, rather than numbers.
        hint: a tooltip that explains the label.
        link: returns the path, below the dashboard's root, that a row's cell links to.
    """

    name: str
    label: str
    show: Callable[[T], object]
    key: Callable[[T], Any] | None = None
    wide: bool = False
    hint: str = ""
    link: Callable[[T], str] | None = None

    @classmethod
    def figure(
        cls,
        name: str,
        label: str,
        value: Callable[[T], Any],
        text: Callable[[Any], object],
        hint: str = "",
    ) -> Column[T]:
        """Return a column of numbers, formatted by *text*; None sorts below all."""

        def key(row: T) -> tuple[bool, Any]:
            found = value(row)
            return found is not None, found if found is not None else 0

        return cls(name, label, lambda row: text(value(row)), key, hint=hint)


@dataclass(frozen=True)
class Table(Generic[T]):
    """One page of a table.

    Attributes:
        name: prefix of its parameters if a page has several tables; "" for the only one.
        caption: its title.
        columns: the first one identifies the row to people.
        rows: the rows of this page.
        identify: returns a key that stays the same when the page refreshes.
        sort, descending: the column to sort by, and the direction.
        total: number of rows on all pages.
        page, pages: the page's number, from 1, and the number of pages.
        empty: says why there are no rows, and how to get some.
    """

    name: str
    caption: str
    columns: Sequence[Column[T]]
    rows: Sequence[T]
    identify: Callable[[T], str]
    sort: str
    descending: bool
    total: int
    page: int = 1
    pages: int = 1
    empty: str = ""

    @classmethod
    def of(
        cls,
        query: QueryParams,
        columns: Sequence[Column[T]],
        rows: Iterable[T],
        *,
        caption: str,
        identify: Callable[[T], str],
        sort: str,
        descending: bool = True,
        name: str = "",
        empty: str = "",
    ) -> Table[T]:
        """Return the page of *rows* that *query* requests (``sort``, ``desc``, ``page``).

        Args:
            sort, descending: used if *query* has no valid ones.
            name: see `Table`.
        """
        keys = {column.name: column.key for column in columns if column.key is not None}
        asked = query.get(f"{name}sort", "")
        if asked in keys:
            sort, descending = asked, query.get(f"{name}desc") == "1"
        ordered = sorted(rows, key=identify)
        ordered.sort(key=keys[sort], reverse=descending)
        pages = max(-(-len(ordered) // _ROWS), 1)
        page = min(number_of(query, f"{name}page", 1), pages)
        return cls(
            name,
            caption,
            columns,
            ordered[(page - 1) * _ROWS : page * _ROWS],
            identify,
            sort,
            descending,
            len(ordered),
            page,
            pages,
            empty,
        )


def number_of(query: QueryParams, name: str, default: int) -> int:
    """Return a number of at least 1 from an address; *default* if it is missing or invalid."""
    text = query.get(name, "")
    return max(int(text), 1) if text.isdecimal() and len(text) <= 9 else default
