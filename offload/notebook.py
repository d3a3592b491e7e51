"""HTML for notebooks: plain tables in the notebook's own colors. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from offload.text import printable

__all__ = ("ROWS", "facts", "table")

ROWS = 50
"""Rows shown at most."""
_LENGTH = 300  # characters shown of a text
_LEFT = ' style="text-align:left;vertical-align:top"'


def facts(title: str, values: Mapping[str, object]) -> str:
    """Return a table of names and values, without those that are None or empty."""
    rows = "".join(
        f"<tr><th{_LEFT}>{_text(name)}</th><td{_LEFT}>{_text(value)}</td></tr>"
        for name, value in values.items()
        if value not in (None, "")
    )
    return _table(title, rows)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], total: int) -> str:
    """Return a table of the first `ROWS` of *total* rows."""
    cells = "".join(f"<th{_LEFT}>{_text(column)}</th>" for column in columns)
    head = f"<thead><tr>{cells}</tr></thead>" if cells else ""
    body = "".join(
        "<tr>" + "".join(f"<td{_LEFT}>{_text(value)}</td>" for value in row) + "</tr>"
        for row, _ in zip(rows, range(ROWS), strict=False)
    )
    more = "" if total <= ROWS else f"<p>… and {total - ROWS:,} more</p>"
    return _table(title, f"{head}<tbody>{body}</tbody>") + more


def _table(title: str, content: str) -> str:
    caption = f'<caption style="text-align:left"><b>{_text(title)}</b></caption>'
    return f"<table>{caption}{content}</table>"


def _text(value: object) -> str:
    text = printable(str(value))
    return escape(text if len(text) <= _LENGTH else f"{text[: _LENGTH - 1]}…")
