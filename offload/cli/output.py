"""What all commands print alike: one JSON document for programs."""

from __future__ import annotations

import json
from typing import Any

import click

__all__ = ("print_json",)


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))
