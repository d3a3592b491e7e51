"""``celery offload classes …``: manage shipped classes and functions."""

from __future__ import annotations

import click

from offload.cli.classes.look import diff, list_, show, status
from offload.cli.classes.move import prune, push, rollback, tag
from offload.cli.classes.trust import keygen, pull, verify

__all__ = ("classes",)


@click.group()
def classes() -> None:
    """Push classes and functions to workers that don't have them, and inspect versions."""


for _command in (diff, keygen, list_, prune, pull, push, rollback, show, status, tag, verify):
    classes.add_command(_command)
