"""What all commands print alike: one JSON document for programs, columns for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click

__all__ = ("print_json", "print_rows", "printable")


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))


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
