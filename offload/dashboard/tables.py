"""Tables, sorted and paged by parameters of the address."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.datastructures import QueryParams

__all__ = ("PAGE", "Column", "Table", "number_of")

T = TypeVar("T")

PAGE = 100
"""Rows on a page."""


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
        pages = max(-(-len(ordered) // PAGE), 1)
        page = min(number_of(query, f"{name}page", 1), pages)
        return cls(
            name,
            caption,
            columns,
            ordered[(page - 1) * PAGE : page * PAGE],
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
