"""Sizes as people write them."""

from __future__ import annotations

import re

__all__ = ("read_size",)

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?) ?([kmgt]?)b?", re.ASCII)
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}


def read_size(text: str) -> int | None:
    """Return the bytes that ``500kB`` or ``1.5 MB`` means; None for what is no size."""
    match = _SIZE.fullmatch(text.lower())
    return None if match is None else int(float(match[1]) * _UNITS[match[2]])
