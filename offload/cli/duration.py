"""How long ago, as commands are told it."""

from __future__ import annotations

import re
from typing import Any

import click

__all__ = ("Duration",)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``30m``, ``6h``, ``7d``, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        match = re.fullmatch(r"([0-9]{1,6})([smhd])", str(value))
        if match is None or not int(match[1]):
            self.fail(f"{value!r} is no time as 30m, 6h or 7d", param, ctx)
        return float(match[1]) * _UNITS[match[2]]
