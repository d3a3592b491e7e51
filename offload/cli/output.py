"""Output shared by all commands: one JSON document for programs, columns for people."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, zip_longest
from typing import Any

import click

from offload.cli import terminal
from offload.cli.terminal import Column
from offload.errors import OffloadError
from offload.text import printable

__all__ = (
    "Column",
    "print_error",
    "print_json",
    "print_json_list",
    "print_labelled",
    "print_pages",
    "print_rows",
)

_IN_MEMORY = 1 << 24  # bytes of a list that are kept in memory before it is printed
_PAGE = 1 << 16  # characters
_ROWS_AT_ONCE = 500  # writing single lines takes longer than formatting them


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))


def print_json_list(documents: Iterable[Any]) -> None:
    """Print a JSON list, which may be long. Nothing is printed until it is complete, so after an
    error `print_error` can still print the only document.
    """
    start = "["
    with tempfile.SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8") as listed:
        for document in documents:
            listed.write(f"{start}\n  {json.dumps(document)}")
            start = ","
        listed.write("[]\n" if start == "[" else "\n]\n")
        listed.seek(0)
        for page in iter(partial(listed.read, _PAGE), ""):
            click.echo(page, nl=False)


def print_error(error: BaseException, message: str) -> None:
    """Print a JSON object that describes *error*, in place of the command's document."""
    kind = click.UsageError if isinstance(error, click.UsageError) else type(error)
    described = {"type": kind.__name__, "message": message}
    if isinstance(error, OffloadError):
        described |= {key: value for key, value in vars(error).items() if value is not None}
    print_json({"error": described})


def print_rows(
    rows: Iterable[Sequence[str]], columns: Sequence[Column] = (), *, levels: bool = False
) -> None:
    """Print rows of texts in columns. Control characters are escaped, as texts may come from a
    store.

    Args:
        columns: their names and layout; without them, no names are printed.
        levels: whether the first text of each row is a level or status, colored on a terminal.
    """
    shown = [[printable(text) for text in row] for row in rows]
    if terminal.print_table(shown, columns, levels=levels):
        return
    if columns:
        shown.insert(0, [column.name for column in columns])
    widths = [max(map(len, texts)) for texts in zip_longest(*shown, fillvalue="")]
    for line in _lines(shown, widths):
        click.echo(line)


def print_pages(
    rows: Iterable[Sequence[str]], columns: Sequence[Column], page: int = _ROWS_AT_ONCE
) -> None:
    """Print rows in columns as they arrive, *page* at a time; print nothing if there are none."""
    rest = iter(rows)
    first = True
    while some := [[printable(text) for text in row] for row in islice(rest, page)]:
        if not terminal.print_table(some, columns, names=first):
            names = [[column.name for column in columns]] if first else []
            click.echo("\n".join(_lines([*names, *some], [column.width for column in columns])))
        first = False


def print_labelled(texts: Iterable[tuple[str, str]], width: int, *, levels: bool = False) -> None:
    """Print texts, each after its label.

    Args:
        width: characters for the label and the space after it.
        levels: whether the labels are levels, colored on a terminal.
    """
    shown = [(label, printable(text)) for label, text in texts]
    if not terminal.print_labelled(shown, width, levels=levels):
        for label, text in shown:
            click.echo(f"{label:<{width}}{text}")


def _lines(rows: Iterable[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    for row in rows:
        texts = [f"{text:<{width}}" for text, width in zip(row, widths, strict=False)]
        yield "  ".join(texts).rstrip()
