"""What all commands print alike: one JSON document for programs, columns for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import click

__all__ = ("print_json", "print_json_list", "print_rows", "printable")


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


def print_rows(rows: Iterable[Sequence[str]]) -> None:
    """Print rows of texts in columns; texts from a store do nothing to a terminal."""
    shown = [[printable(text) for text in row] for row in rows]
    widths: dict[int, int] = {}
    for row in shown:
        for column, text in enumerate(row[:-1]):
            widths[column] = max(widths.get(column, 0), len(text))
    for row in shown:
        texts = [f"{text:<{widths.get(column, 0)}}" for column, text in enumerate(row)]
        click.echo("  ".join(texts).rstrip())


def printable(text: str) -> str:
    """Return *text* with what a terminal would not print in it written out, as Python does."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
