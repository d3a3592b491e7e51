"""Render pages from templates, which escape everything, with their tables and charts."""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from offload.dashboard.security import FIELD, path_of, root_of, sign, token_of
from offload.dashboard.state import state_of
from offload.errors import ConfigurationError
from offload.text import (
    UNKNOWN,
    human_duration,
    human_latency,
    human_number,
    human_percent,
    human_ratio,
    human_size,
    human_time,
    human_time_saved,
)

__all__ = ("Chart", "Column", "Table", "along_time", "moment", "number_of", "plotly", "render")

T = TypeVar("T")

_ROWS = 100  # of a table on a page
_NAVIGATION = {
    "/": "Overview",
    "/tasks": "Tasks",
    "/blobs": "Blobs",
    "/catalog": "Catalog",
    "/classes": "Classes",
    "/stores": "Stores and workers",
    "/estimate": "Estimate",
}
"""Labels of pages in the navigation, by path."""


def render(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    """Render a page. *context* contains at least ``title``."""
    page = _TEMPLATES.get_template(template).render(
        root=root_of(request.scope),
        path=path_of(request.scope),
        query=request.query_params,
        navigation=_NAVIGATION,
        store=state_of(request).runtime.store.url,
        now=time.time(),
        form_field=FIELD,
        form_token=token_of(request),
        **context,
    )
    # Texts of others may contain lone surrogates, which UTF-8 can't encode.
    response = HTMLResponse(page.encode("utf-8", "replace"), status)
    sign(request, response)
    return response


def moment(at: float | None) -> Markup | str:
    """Return a time that browsers show in their own time zone; "-" for None."""
    if at is None:
        return UNKNOWN
    try:
        utc = datetime.fromtimestamp(at, timezone.utc)
    except (OverflowError, OSError, ValueError):  # it came from a store
        return "?"
    return Markup('<time datetime="{}">{}</time>').format(
        utc.isoformat(timespec="seconds"), utc.strftime("%Y-%m-%d %H:%M:%S UTC")
    )


def _link(query: Mapping[str, str], **changed: object) -> str:
    """Return the page's address with changed parameters; None removes one."""
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
        moment=moment,
        number=human_number,
        percent=human_percent,
        seconds=human_latency,
        size=human_size,
        span=human_duration,
        saved=human_time_saved,
        times=human_ratio,
        json=lambda value: json.dumps(value, separators=(",", ":")),
    )
    made.globals["link"] = _link
    return made


_TEMPLATES = _templates()


@dataclass(frozen=True)
class Chart:
    """Lines or bars over a common x axis.

    Attributes:
        name: on its page.
        title: its caption.
        x: labels, or ISO 8601 times.
        series: numbers by label.
        unit: ``bytes``, ``seconds`` or "" (numbers).
        kind: ``lines`` or ``bars``.
    """

    name: str
    title: str
    x: Sequence[str]
    series: Mapping[str, Sequence[float]]
    unit: str = ""
    kind: str = "lines"

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(any(numbers) for numbers in self.series.values())

    @property
    def data(self) -> dict[str, Any]:
        """The data that the browser draws."""
        return {
            "x": list(self.x),
            "series": [
                {"label": label, "y": list(numbers)} for label, numbers in self.series.items()
            ],
            "unit": self.unit,
            "kind": self.kind,
        }


def along_time(
    name: str,
    title: str,
    times: Sequence[float],
    series: Mapping[str, Sequence[float]],
    **more: Any,
) -> Chart:
    """Return a chart over times (seconds since 1970)."""
    return Chart(name, title, [human_time(at) for at in times], series, **more)


def plotly(request: Request) -> Response:
    """Serve Plotly's script, compressed once (1.4 of 4.8 MB); 304 if the browser has it."""
    content, tag = _compressed()
    headers = {"etag": tag, "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
    else:
        content = gzip.decompress(content)
    return Response(content, headers=headers, media_type="text/javascript")


@lru_cache(maxsize=1)
def _compressed() -> tuple[bytes, str]:
    found = util.find_spec("plotly")  # importing it takes long, and isn't needed
    if found is None or found.origin is None:
        raise ConfigurationError('the dashboard needs Plotly: pip install "offload[dashboard]"')
    script = (Path(found.origin).parent / "package_data" / "plotly.min.js").read_bytes()
    return gzip.compress(script, 6), f'"{hashlib.sha256(script).hexdigest()[:32]}"'


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of a table.

    Attributes:
        name: in addresses.
        label: for people.
        show: returns the text of a row's cell.
        key: returns a row's sort key; None if the column can't be sorted by.
        wide: whether it is text, which is aligned left.
        hint: explains the label.
        link: returns the path that a row's cell links to, below the dashboard's root.
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
    """A page of rows.

    Attributes:
        name: prefix of its parameters if a page has several tables; "" for the only one.
        caption: its title.
        columns: the first identifies the row for people.
        rows: those of this page.
        identify: returns the key by which a row is recognized when the page refreshes.
        sort, descending: the column and direction of sorting.
        total: rows on all pages.
        page, pages: from 1.
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
    ) -> Table[T]:
        """Return the page of *rows* that *query* requests (``sort``, ``desc``, ``page``).

        Args:
            sort, descending: the defaults.
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
        )


def number_of(query: QueryParams, name: str, default: int) -> int:
    """Return a number of at least 1 from an address; *default* if it is missing or invalid."""
    text = query.get(name, "")
    return max(int(text), 1) if text.isdecimal() and len(text) <= 9 else default
