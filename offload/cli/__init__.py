"""The command group ``celery -A proj offload …``.

Celery imports this module for every ``celery`` command. To keep that cheap, it imports only the
library's errors up front, and a command's module when that command runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click
from celery.bin.base import handle_preload_options

from offload.errors import OffloadError, StoreUnavailable

_JSON = "offload_json"

__all__ = ("offload",)

_COMMANDS = {
    "catalog": "catalog",
    "check": "doctor",
    "classes": "classes",
    "dashboard": "serve",
    "doctor": "doctor",
    "estimate": "stats",
    "exporter": "serve",
    "gc": "cleanup",
    "get": "values",
    "inspect": "values",
    "locks": "locks",
    "ls": "blobs",
    "memo": "memo",
    "purge": "cleanup",
    "reencrypt": "cleanup",
    "rm": "blobs",
    "stats": "stats",
    "store": "store",
    "types": "values",
}
"""The module of each command."""


UNAVAILABLE = 69
"""Exit code if a server is unavailable, like that of Celery's own commands (EX_UNAVAILABLE)."""


class _Unavailable(click.ClickException):
    exit_code = UNAVAILABLE


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"{__name__}.{_COMMANDS[cmd_name]}")
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
            # The message may quote text from the store.
            raise kind("\n".join(map(printable, str(exc).splitlines()))) from exc


def _offload(_ctx: click.Context, **_preload: Any) -> None:
    """Inspect and maintain the store of large values.

    Name the app: celery -A proj offload COMMAND, where proj is the module or package that creates
    it. Start with check, which sends a value to a worker and back, or doctor.
    """


offload = click.group(name="offload", cls=_Commands)(
    click.pass_context(handle_preload_options(_offload))
)
