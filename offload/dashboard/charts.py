"""Charts as data: what is drawn, and in words for who does not see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offload.text import human_time

__all__ = ("Chart", "along_time")


@dataclass(frozen=True)
class Chart:
    """Lines or bars over common places on the x axis.

    Attributes:
        name: on its page.
        title: what it shows.
        x: places: texts, or ISO 8601 times.
        series: numbers by label.
        unit: ``bytes``, ``seconds`` or "" (numbers).
        kind: ``lines`` or ``bars``.
    """

    name: str
    title: str
    x: Sequence[str]
    series: Mapping[str, Sequence[float]]
    unit: str = ""
    kind: str = "lines"

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(any(numbers) for numbers in self.series.values())

    @property
    def data(self) -> dict[str, Any]:
        """What the browser draws."""
        return {
            "x": list(self.x),
            "series": [
                {"label": label, "y": list(numbers)} for label, numbers in self.series.items()
            ],
            "unit": self.unit,
            "kind": self.kind,
        }


def along_time(
    name: str,
    title: str,
    times: Sequence[float],
    series: Mapping[str, Sequence[float]],
    **more: Any,
) -> Chart:
    """Return a chart over moments (seconds since 1970)."""
    return Chart(name, title, [human_time(at) for at in times], series, **more)
