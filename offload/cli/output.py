"""What all commands print alike: one JSON document for programs, columns for people."""

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

_IN_MEMORY = 1 << 24  # bytes of a list that is not printed yet
_PAGE = 1 << 16  # characters
_TOGETHER = 500  # a line by itself takes more time to be written than to be made


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))


def print_json_list(documents: Iterable[Any]) -> None:
    """Print one JSON document, a list. It may be long; nothing is printed before all of it is
    there, so that an error on the way leaves room for `print_error`.
    """
    begin = "["
    with tempfile.SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8") as listed:
        for document in documents:
            listed.write(f"{begin}\n  {json.dumps(document)}")
            begin = ","
        listed.write("[]\n" if begin == "[" else "\n]\n")
        listed.seek(0)
        for page in iter(partial(listed.read, _PAGE), ""):
            click.echo(page, nl=False)


def print_error(error: BaseException, message: str) -> None:
    """Print a JSON object that describes *error*: for programs, in place of a document."""
    kind = click.UsageError if isinstance(error, click.UsageError) else type(error)
    described = {"type": kind.__name__, "message": message}
    if isinstance(error, OffloadError):
        described |= {key: value for key, value in vars(error).items() if value is not None}
    print_json({"error": described})


def print_rows(
    rows: Iterable[Sequence[str]], columns: Sequence[Column] = (), *, levels: bool = False
) -> None:
    """Print rows of texts in columns; texts from a store do nothing to a terminal.

    Args:
        columns: of names for all of them; none are shown without.
        levels: the first text of each row is a level or status, coloured on a terminal.
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
    rows: Iterable[Sequence[str]], columns: Sequence[Column], page: int = _TOGETHER
) -> None:
    """Print rows likewise as they come, *page* of them at once; nothing if there are none."""
    rest = iter(rows)
    first = True
    while some := [[printable(text) for text in row] for row in islice(rest, page)]:
        if not terminal.print_table(some, columns, names=first):
            names = [[column.name for column in columns]] if first else []
            click.echo("\n".join(_lines([*names, *some], [column.width for column in columns])))
        first = False


def print_labelled(texts: Iterable[tuple[str, str]], width: int, *, levels: bool = False) -> None:
    """Print texts, each behind its label, which takes *width* characters with the space.

    Args:
        levels: the labels are levels, coloured on a terminal.
    """
    shown = [(label, printable(text)) for label, text in texts]
    if not terminal.print_labelled(shown, width, levels=levels):
        for label, text in shown:
            click.echo(f"{label:<{width}}{text}")


def _lines(rows: Iterable[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    for row in rows:
        texts = [f"{text:<{width}}" for text, width in zip(row, widths, strict=False)]
        yield "  ".join(texts).rstrip()
