"""What is counted, kept in a store: added up from all processes, bounded, never exact to the last.

Two accounts. The *total* has every counter with the task and argument it is about. The *series*
has, for each minute, hour and day, the counters by task; they go after `KEPT`. Names of counters
and their labels are one text, `LABEL` between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

__all__ = ("FIELDS", "KEPT", "LABEL", "SPANS", "Rider", "Span", "Tallied", "Tallies", "Tally")

LABEL = "\x1f"
FIELDS = 20_000
"""Different texts that an account has at most; what comes then is counted under another task."""

Span = Literal["minute", "hour", "day"]
SPANS: Mapping[Span, int] = {"minute": 60, "hour": 3600, "day": 86400}
"""Seconds of each."""
KEPT: Mapping[Span, int] = {"minute": 3 * 3600, "hour": 3 * 86400, "day": 90 * 86400}
"""Seconds for which each is kept."""


@dataclass(frozen=True)
class Tally:
    """What one process counted for a while.

    Attributes:
        process: its name; no other has it.
        number: rises with each of its tallies: one that comes twice is counted once.
        total: amounts by text, to be added to the total.
        series: likewise, to the series.
    """

    process: str
    number: int
    total: Mapping[str, int]
    series: Mapping[str, int]


class Rider(Protocol):
    """Gives what is to be written with the next round trip that a store makes anyway."""

    def due(self) -> Tally | None:
        """Return it; None if there is nothing, or something was given just now."""

    def lost(self, tally: Tally) -> None:
        """Take back what could not be written: it is due again, under the same number."""


class Tallies(Protocol):
    """The two accounts. Raises StoreUnavailable as all of a store does.

    Attributes:
        rides: whether `ride` does anything. Where it does not, somebody must `add` now and then.
    """

    @property
    def rides(self) -> bool: ...

    def ride(self, rider: Rider) -> None:
        """Write what *rider* gives along with what else is asked of the store."""

    def add(self, tally: Tally) -> None:
        """Write it now. One round trip, and now and then some more where `rides` is false."""

    def end(self) -> None:
        """Say that this process will not add anything for now."""

    def total(self) -> dict[str, int]:
        """Return the total."""

    def series(self, span: Span, since: float | None = None) -> dict[int, dict[str, int]]:
        """Return the series of minutes, hours or days, by when each began (seconds since 1970).

        Args:
            since: only those that end in the last so many seconds; else all that are kept.
        """

    def clear(self) -> None:
        """Begin anew, from nothing."""


@runtime_checkable
class Tallied(Protocol):
    """A store that keeps such accounts."""

    @property
    def tallies(self) -> Tallies: ...
