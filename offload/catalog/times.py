"""Durations and moments as people are told of them."""

from __future__ import annotations

import math
from datetime import datetime, timezone

__all__ = ("lasts", "moment")

_DURATIONS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def lasts(seconds: float | None) -> str:
    """Return seconds as people read them: ``45 s``, ``2.0 h``; ``-`` where they are not known."""
    if seconds is None:
        return "-"
    if math.isinf(seconds):
        return "for ever"
    for size, unit in _DURATIONS:
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def moment(seconds: float) -> str:
    """Return seconds since 1970 in ISO 8601; ``?`` for what is no such time."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):
        return "?"
