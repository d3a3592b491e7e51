"""Tables on a terminal with rich (extra ``cli``); otherwise commands print plain columns."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ("STYLES", "Column", "console", "is_terminal", "print_labelled", "print_table")

STYLES = {
    "error": "bold red",
    "refused": "bold red",
    "warning": "yellow",
    "out_of_sync": "yellow",
    "untracked": "yellow",
    "ok": "green",
    "synced": "green",
    "pushed": "green",
    "stored": "green",
}
"""Styles of levels and statuses."""

_GAP = 2  # characters between columns
_MANY = 50  # rows above which rich, at 0.7 ms per row, is used only if needed
_LEAST = 16  # minimum width of a column that wraps


@dataclass(frozen=True)
class Column:
    """Layout of a column.

    Attributes:
        name: its header.
        width: in characters, if rows are printed as they arrive; else 0.
        number: whether it is right-aligned on a terminal.
        breaks: whether its texts wrap on a terminal; those of the last column always do.
    """

    name: str
    width: int = 0
    number: bool = False
    breaks: bool = False


def is_terminal(stream: TextIO) -> bool:
    """Return whether *stream* is a terminal that understands control sequences."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def console() -> Console | None:
    """Return a console for tables on standard output.

    None if that isn't a terminal or is a dumb one, or if rich isn't installed.
    """
    if not is_terminal(sys.stdout):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    found = Console(markup=False, emoji=False, highlight=False)
    return found if found.is_terminal else None


def print_table(
    rows: Sequence[Sequence[str]],
    columns: Sequence[Column] = (),
    *,
    names: bool = True,
    levels: bool = False,
) -> bool:
    """Print a table of printable texts if standard output is a terminal that it fits; return
    whether it was printed.
    """
    out = console()
    if out is None or not rows:
        return False
    if not columns:
        columns = [Column("")] * max(map(len, rows))
    names = names and any(column.name for column in columns)
    widths = [
        max(column.width, len(column.name), *(len(row[at]) for row in rows if at < len(row)))
        for at, column in enumerate(columns)
    ]
    gaps = _GAP * (len(columns) - 1)
    if len(rows) > _MANY and not levels and sum(widths) + gaps <= out.width and _ascii(rows):
        if names:
            out.print(_line([column.name for column in columns], columns, widths), style="bold")
        out.file.write("".join(f"{_line(row, columns, widths)}\n" for row in rows))
        return True
    table = _grid(header=names)
    least = gaps
    for at, (column, width) in enumerate(zip(columns, widths, strict=True)):
        breaks = column.breaks or at == len(columns) - 1
        least += min(width, _LEAST) if breaks else width
        table.add_column(
            column.name,
            justify="right" if column.number else "left",
            min_width=column.width or None,
            no_wrap=not breaks,
            overflow="fold",
        )
    if least > out.width:
        return False
    for row in rows:
        table.add_row(*_texts(row, levels=levels))
    out.print(table)
    return True


def _ascii(rows: Sequence[Sequence[str]]) -> bool:
    return all(text.isascii() for row in rows for text in row)


def _line(row: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = (
        text.rjust(width) if column.number else text.ljust(width)
        for text, column, width in zip(row, columns, widths, strict=False)
    )
    return (" " * _GAP).join(padded).rstrip()


def print_labelled(texts: Sequence[tuple[str, str]], width: int, *, levels: bool = False) -> bool:
    """Print labels and printable texts, which wrap beside them, if standard output is a terminal
    that they fit; return whether they were printed.
    """
    out = console()
    if out is None or out.width < width + _LEAST:
        return False
    table = _grid(gap=1)
    table.add_column(min_width=width - 1, no_wrap=True, style="" if levels else "bold")
    table.add_column(overflow="fold")
    for row in texts:
        table.add_row(*_texts(row, levels=levels))
    out.print(table)
    return True


def _grid(*, gap: int = _GAP, header: bool = False) -> Table:
    from rich.table import Table

    return Table(
        box=None, padding=(0, gap, 0, 0), pad_edge=False, show_header=header, header_style="bold"
    )


def _texts(row: Sequence[str], *, levels: bool) -> list[Any]:
    """Convert a row to rich texts, ignoring markup."""
    from rich.text import Text

    first = STYLES.get(row[0], "") if levels and row else ""
    return [Text(text, style="" if at else first) for at, text in enumerate(row)]
