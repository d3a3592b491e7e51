"""``celery offload classes …``: code that workers do not have."""

from __future__ import annotations

import click

from offload.cli.classes.look import diff, list_, show, status
from offload.cli.classes.move import prune, push, rollback, tag
from offload.cli.classes.trust import keygen, pull, verify

__all__ = ("classes",)


@click.group()
def classes() -> None:
    """Push code that workers do not have, and see which they would load."""


for _command in (diff, keygen, list_, prune, pull, push, rollback, show, status, tag, verify):
    classes.add_command(_command)
