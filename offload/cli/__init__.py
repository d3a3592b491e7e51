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

_JSON = "offload_json"

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
    "purge",
    "rm",
    "stats",
    "store",
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

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception as exc:
            from offload.cli.output import print_error
            from offload.text import printable

            as_json = ctx.meta[_JSON]
            if isinstance(exc, click.ClickException):
                if not as_json:
                    raise
                print_error(exc, exc.format_message())
                ctx.exit(exc.exit_code)
            if as_json:
                print_error(exc, str(exc))
            if not isinstance(exc, OffloadError):
                raise
            kind = _Unavailable if isinstance(exc, StoreUnavailable) else click.ClickException
            if as_json:
                ctx.exit(kind.exit_code)
            # What is in a store may be in a message.
            raise kind("\n".join(map(printable, str(exc).splitlines()))) from exc


def _offload(_ctx: click.Context, **_preload: Any) -> None:
    """Look after the store of large values."""


offload = click.group(name="offload", cls=_Nouns)(
    click.pass_context(handle_preload_options(_offload))
)
