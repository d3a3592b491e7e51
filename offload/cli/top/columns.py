"""The columns of tasks: what each shows of figures, and of what was counted lately."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from offload.stats import Figures
from offload.stats.recent import Recent
from offload.stats.told import percent, times
from offload.text import human_size

__all__ = ("COLUMNS", "SORTS", "Column", "Order")

Order = Callable[[str, Figures, Recent | None], tuple[float, str]]


@dataclass(frozen=True)
class Column:
    """Attributes:
    show: returns the text for figures.
    rate: returns the text for what was counted lately; None shows nothing.
    rank: those of the highest rank go first where a terminal is narrow.
    """

    name: str
    width: int
    rank: int
    show: Callable[[Figures], str]
    rate: Callable[[Recent], str]


def _number(name: str) -> tuple[Callable[[Figures], str], Callable[[Recent], str]]:
    return (lambda figures: f"{figures[name]:,}"), (lambda recent: f"{recent.rate(name):,.1f}/s")


def _bytes(name: str) -> tuple[Callable[[Figures], str], Callable[[Recent], str]]:
    return (
        lambda figures: human_size(figures[name]),
        lambda recent: f"{human_size(recent.rate(name))}/s",
    )


def _fetched(figures: Figures) -> int:
    return figures["values_fetched"] + figures["cache_hits"]


def _errors(figures: Figures) -> int:
    return sum(figures.errors.values())


COLUMNS = (
    Column("VALUES", 11, 3, *_number("values_seen")),
    Column("BY REF", 11, 6, *_number("values_offloaded")),
    Column("BYTES", 10, 0, *_bytes("bytes_offloaded")),
    Column("UPLOADED", 10, 7, *_bytes("bytes_uploaded")),
    Column(
        "DEDUP",
        7,
        4,
        lambda figures: times(figures.deduplication),
        lambda recent: times(recent.figures.deduplication),
    ),
    Column(
        "FETCHED",
        11,
        8,
        lambda figures: f"{_fetched(figures):,}",
        lambda recent: f"{_fetched(recent.figures) / recent.seconds:,.1f}/s",
    ),
    Column(
        "HITS",
        5,
        5,
        lambda figures: percent(figures.hit_ratio),
        lambda recent: percent(recent.figures.hit_ratio),
    ),
    Column(
        "ERRORS",
        7,
        1,
        lambda figures: f"{_errors(figures):,}",
        lambda recent: f"{_errors(recent.figures):,}",
    ),
)

NOW = Column("NOW", 10, 2, lambda _figures: "", _bytes("bytes_offloaded")[1])
"""What tasks alone have."""


def _now(name: str, _figures: Figures, recent: Recent | None) -> tuple[float, str]:
    return (0.0 if recent is None else -recent.rate("bytes_offloaded"), name)


SORTS: dict[str, Order] = {
    "bytes": lambda name, figures, _: (-figures["bytes_offloaded"], name),
    "now": _now,
    "values": lambda name, figures, _: (-figures["values_seen"], name),
    "errors": lambda name, figures, _: (-_errors(figures), name),
    "name": lambda name, _figures, _recent: (0, name),
}
"""By what tasks are sorted, in the order in which a key goes through them."""
