"""The app that a command runs for, and options shared by commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from offload.errors import ConfigurationError
from offload.hooks.runtime import Runtime
from offload.text import parse_duration, parse_size

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


class _Parsed(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Type of an option whose text *parse* converts; *wanted* describes valid text."""

    def __init__(self, name: str, parse: Callable[[str], float | None], wanted: str) -> None:
        self.name = name
        self._parse = parse
        self._wanted = wanted

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        found = self._parse(str(value))
        if found is None:
            self.fail(f"expected {self._wanted}, not {value!r}", param, ctx)
        return found


def _duration(text: str) -> float | None:
    return parse_duration(text) or None  # "the last 0 s" would be an empty range


DURATION = _Parsed("duration", _duration, "a duration such as 30m, 6h, or 7d")
"""Option type for durations; converts to seconds."""

SIZE = _Parsed("size", parse_size, "a size such as 500kB, 64KiB, or 1.5MB")
"""Option type for sizes; converts to bytes."""


def runtime_of(ctx: click.Context) -> Runtime:
    """Import the task modules of the app that ``celery -A`` names, and return its runtime.

    Raises ConfigurationError if no app is named, or it has no offload.
    """
    app = ctx.obj.app
    app.loader.import_default_modules()
    runtime = getattr(app, "_offload", None)
    if isinstance(runtime, Runtime):
        return runtime
    if ctx.find_root().params.get("app") is None:
        command = ctx.command_path.rpartition(" offload ")[2]
        raise ConfigurationError(
            "no app is named: name the module or package that creates your Celery app with -A, as "
            f"in celery -A proj offload {command}"
        )
    raise ConfigurationError(
        f"app {app.main or 'default'!r} has no offload: call Offload(app) in the module that "
        "creates it"
    )
