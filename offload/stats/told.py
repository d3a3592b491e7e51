"""Figures as people are told of them; ``-`` is what cannot be told."""

from __future__ import annotations

import math

__all__ = ("bound", "percent", "times")


def times(ratio: float | None) -> str:
    """Return a ratio as ``3.1x``."""
    if ratio is None:
        return "-"
    return "all" if math.isinf(ratio) else f"{ratio:,.1f}x"


def percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.0%}"


def bound(seconds: float | None) -> str:
    """Return what `Figures.quantile` found, in milliseconds."""
    if seconds is None:
        return "-"
    return "longer" if math.isinf(seconds) else f"{seconds * 1e3:g} ms"
