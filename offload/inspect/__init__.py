"""Queries for operators: blobs, values, tasks, workers, classes, stores, configuration drift.

Commands and the dashboard format the results. Text from a store or a worker is untrusted: escape it
before showing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ("Finding", "Level")

Level = Literal["ok", "info", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        level: ``ok``; ``info``, worth knowing; ``warning``, may fail later; or ``error``, fails
            now.
        what: the result, in one sentence.
        remedy: what to do about it; "" if nothing.
    """

    level: Level
    what: str
    remedy: str = ""
