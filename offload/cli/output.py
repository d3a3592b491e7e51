"""How commands print: aligned columns for people, one JSON document for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click

__all__ = ("print_json", "print_table")


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print *rows* of equal length in aligned columns."""
    kept = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*kept, strict=True)]
    for row in kept:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
