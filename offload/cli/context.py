"""From a command's context to the app's Offload."""

from __future__ import annotations

import click

from offload.errors import ConfigurationError
from offload.hooks.app import Offload

__all__ = ("hook_of",)


def hook_of(ctx: click.Context) -> Offload:
    """Return the Offload of the app that ``celery -A`` names, its task modules imported.

    Raises ConfigurationError if it has none.
    """
    app = ctx.obj.app
    app.loader.import_default_modules()
    hook = getattr(app, "_offload", None)
    if not isinstance(hook, Offload):
        raise ConfigurationError(
            f"app {app.main or 'default'!r} has no offload: name the app by -A, as in "
            f"celery -A proj offload {ctx.command_path.rpartition(' offload ')[2]}, "
            "and connect it by Offload(app) in one of its modules"
        )
    return hook
