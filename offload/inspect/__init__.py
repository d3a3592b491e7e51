"""Queries by operators: blobs, values, tasks, workers, classes, stores, configuration drift.

The commands and the dashboard show the answers. Texts that came from a store or a worker are data:
whoever shows them escapes them.
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
        level: ``ok``; ``info``, worth knowing; ``warning``, will fail some day; ``error``,
            fails now.
        what: one sentence for people.
        remedy: what to do, if there is anything to do.
    """

    level: Level
    what: str
    remedy: str = ""
