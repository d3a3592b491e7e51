"""Duration options of commands."""

from __future__ import annotations

from typing import Any

import click

from offload.text import parse_duration

__all__ = ("Duration",)


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A duration such as ``30m``, ``6h``, or ``7d``, converted to seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        seconds = parse_duration(str(value))
        if seconds is None:
            self.fail(f"expected a duration such as 30m, 6h, or 7d, not {value!r}", param, ctx)
        return seconds
