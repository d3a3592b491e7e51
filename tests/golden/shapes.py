"""A class and a helper whose hashes and stored form are pinned; an edit makes a new version."""

from __future__ import annotations

from dataclasses import dataclass

LIMIT = 3


def clamp(value: int) -> int:
    return min(value, LIMIT)


@dataclass
class Point:
    """A point."""

    x: int
    y: int = 0

    def moved(self, dx: int) -> Point:
        return Point(clamp(self.x + dx), self.y)


class Plain:
    names = ("a", "b")

    @property
    def first(self) -> str:
        return self.names[0]
