"""Figures as people read them."""

from __future__ import annotations

import math
from datetime import datetime, timezone

from markupsafe import Markup

from offload.text import human_size

__all__ = ("NONE", "moment", "number", "percent", "seconds", "size", "span", "times")

NONE = "-"
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def number(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def size(value: float | None) -> str:
    """Return bytes."""
    return NONE if value is None else human_size(value)


def times(ratio: float | None) -> str:
    if ratio is None:
        return NONE
    return "all" if math.isinf(ratio) else f"{ratio:,.1f}x"


def percent(part: float | None) -> str:
    return NONE if part is None else f"{part:.0%}"


def seconds(value: float | None) -> str:
    """Return a short time."""
    if value is None:
        return NONE
    if math.isinf(value):
        return "longer"
    return f"{value * 1e3:,.4g} ms" if value < 1 else f"{value:,.4g} s"


def span(value: float | None) -> str:
    """Return a long time, by its largest unit: ``1.3 d``."""
    if value is None:
        return NONE
    for unit, name in _UNITS:
        if value >= unit:
            return f"{value / unit:,.1f} {name}" if unit > 1 else f"{value:.0f} s"
    return "0 s"


def moment(at: float | None) -> Markup | str:
    """Return when something was or will be, as a browser can show in its own time zone."""
    if at is None:
        return NONE
    told = datetime.fromtimestamp(at, timezone.utc)
    return Markup('<time datetime="{}">{}</time>').format(
        told.isoformat(timespec="seconds"), told.strftime("%Y-%m-%d %H:%M:%S UTC")
    )
