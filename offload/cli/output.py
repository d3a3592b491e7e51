"""What all commands print alike: one JSON document for programs, columns for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import Any

import click

from offload.cli import terminal
from offload.cli.terminal import Column

__all__ = (
    "Column",
    "print_json",
    "print_json_list",
    "print_labelled",
    "print_pages",
    "print_rows",
    "printable",
)


_TOGETHER = 500  # a line by itself takes more time to be written than to be made


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))


def print_json_list(documents: Iterable[Any]) -> None:
    """Print one JSON document, a list, item by item: it may be long."""
    begin, rest = "[", iter(documents)
    while some := list(islice(rest, _TOGETHER)):
        click.echo(begin + ",".join(f"\n  {json.dumps(document)}" for document in some), nl=False)
        begin = ","
    click.echo("[]" if begin == "[" else "\n]")


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


def printable(text: str) -> str:
    """Return *text* with what a terminal would not print in it written out, as Python does."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _lines(rows: Iterable[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    for row in rows:
        texts = [f"{text:<{width}}" for text, width in zip(row, widths, strict=False)]
        yield "  ".join(texts).rstrip()
