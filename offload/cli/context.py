"""Find the runtime of the app that a command is about."""

from __future__ import annotations

import click

from offload.errors import ConfigurationError
from offload.hooks.runtime import Runtime

__all__ = ("runtime_of",)


def runtime_of(ctx: click.Context) -> Runtime:
    """Return the runtime of the app that ``celery -A`` names, its task modules imported.

    Raises ConfigurationError if it has none.
    """
    app = ctx.obj.app
    app.loader.import_default_modules()
    runtime = getattr(app, "_offload", None)
    if not isinstance(runtime, Runtime):
        raise ConfigurationError(
            f"app {app.main or 'default'!r} has no offload: name the app by -A, as in "
            f"celery -A proj offload {ctx.command_path.rpartition(' offload ')[2]}, "
            "and connect it by Offload(app) in one of its modules"
        )
    return runtime
