"""``celery -A proj offload …``: what operators ask of a store, one file per noun.

Celery imports this module at every call of ``celery``, whichever command is meant; so it
imports nothing of the library but the errors, and a command's module only when that runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click
from celery.bin.base import handle_preload_options

from offload.errors import OffloadError, StoreUnavailable

__all__ = ("offload",)

_NOUNS = (
    "classes",
    "dashboard",
    "doctor",
    "estimate",
    "exporter",
    "gc",
    "get",
    "inspect",
    "ls",
    "rm",
    "stats",
    "store",
    "top",
)  # each a command of that name in a module of that name


class _Unavailable(click.ClickException):
    exit_code = 69  # EX_UNAVAILABLE, as of Celery's own commands when a server is away


class _Nouns(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _NOUNS:
            return None
        module = import_module(f"{__name__}.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OffloadError as exc:
            from offload.cli.output import printable  # what is in a store may be in a message

            kind = _Unavailable if isinstance(exc, StoreUnavailable) else click.ClickException
            raise kind("\n".join(map(printable, str(exc).splitlines()))) from exc


def _offload(_ctx: click.Context, **_preload: Any) -> None:
    """Look after the store of large values."""


offload = click.group(name="offload", cls=_Nouns)(
    click.pass_context(handle_preload_options(_offload))
)
