"""Find the runtime of a command's app."""

from __future__ import annotations

import click

from offload.errors import ConfigurationError
from offload.hooks.runtime import Runtime

__all__ = ("runtime_of",)


def runtime_of(ctx: click.Context) -> Runtime:
    """Import the task modules of the app that ``celery -A`` names, and return its runtime.

    Raises ConfigurationError if the app has no offload.
    """
    app = ctx.obj.app
    app.loader.import_default_modules()
    runtime = getattr(app, "_offload", None)
    if not isinstance(runtime, Runtime):
        raise ConfigurationError(
            f"app {app.main or 'default'!r} has no offload: name the app with -A, as in "
            f"celery -A proj offload {ctx.command_path.rpartition(' offload ')[2]}, "
            "and call Offload(app) in one of its modules"
        )
    return runtime
