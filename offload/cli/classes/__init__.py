"""``celery offload classes …``: manage shipped classes and functions."""

from __future__ import annotations

import click

from offload.cli.classes.shipping import keygen, prune, pull, push, rollback, tag, verify
from offload.cli.classes.versions import diff, list_, show, status

__all__ = ("classes",)


@click.group()
def classes() -> None:
    """Manage shipped classes: push, list, compare, tag, and verify."""


for _command in (diff, keygen, list_, prune, pull, push, rollback, show, status, tag, verify):
    classes.add_command(_command)
