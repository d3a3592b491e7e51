"""Counters for the pages: sums over a time range, and their course over time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from offload.dashboard.caching import TTLCache
from offload.hooks.runtime import Runtime
from offload.metrics.report import Figures, Report, report, timeline
from offload.metrics.storage import sums_of
from offload.stores.sums import SPANS, Span

__all__ = ("TIME_RANGES", "Statistics", "TimeRange", "Timeline")

_SECONDS = 2.0  # how long read counters are shown before they are read again


@dataclass(frozen=True)
class TimeRange:
    """A time range up to now, which a page can show.

    Attributes:
        name: its name in URLs.
        label: its name on pages.
        seconds: its length; None for all time.
        span: the steps of its charts.
    """

    name: str
    label: str
    seconds: int | None
    span: Span


TIME_RANGES = {
    time_range.name: time_range
    for time_range in (
        TimeRange("1h", "1 hour", 3600, "minute"),
        TimeRange("3h", "3 hours", 3 * 3600, "minute"),
        TimeRange("1d", "1 day", 86400, "hour"),
        TimeRange("3d", "3 days", 3 * 86400, "hour"),
        TimeRange("30d", "30 days", 30 * 86400, "day"),
        TimeRange("90d", "90 days", 90 * 86400, "day"),
        TimeRange("all", "all time", None, "day"),
    )
}
"""All time ranges by name."""


@dataclass(frozen=True)
class Timeline:
    """Figures of consecutive minutes, hours, or days, without gaps.

    Attributes:
        seconds: length of a step.
        figures: by the start of each step, in seconds since 1970.
    """

    seconds: int
    figures: Mapping[int, Figures]

    @classmethod
    def filled(
        cls, seconds: int, found: Mapping[int, Figures], start: float | None, now: float
    ) -> Timeline:
        """Return *found* since *start*, with zeros for steps in which nothing was counted.

        The current minute isn't over, so its figures would look like a drop. It is omitted
        unless it is the only one.
        """
        kept = sorted(at for at in found if start is None or at + seconds > start)
        if not kept:
            return cls(seconds, {})
        if seconds == SPANS["minute"] and len(kept) > 1 and kept[-1] + seconds > now:
            kept.pop()
        every = range(kept[0], kept[-1] + 1, seconds)
        return cls(seconds, {at: found.get(at, Figures({})) for at in every})


class Statistics:
    """Reads the store's counters, at most every `_SECONDS`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._reports: TTLCache[Report] = TTLCache(self._report, _SECONDS)
        self._lines: TTLCache[Mapping[int, Figures]] = TTLCache(self._line, _SECONDS)

    def report(self, time_range: TimeRange, *, tasks: bool = False) -> Report:
        """Return the sums of the counters; with *tasks*, also by task.

        Raises ConfigurationError for a store without statistics, StoreUnavailable.
        """
        return self._reports.get(time_range, tasks)

    def timeline(self, time_range: TimeRange, start: float | None) -> Timeline:
        """Return the counters of each step since *start*; raises as `report` does."""
        found = self._lines.get(time_range.span)
        return Timeline.filled(SPANS[time_range.span], found, start, time.time())

    def _report(self, time_range: TimeRange, tasks: bool) -> Report:
        sums = sums_of(self._runtime.store)
        self._runtime.recorder.write()
        return report(sums, time_range.seconds, tasks=tasks)

    def _line(self, span: Span) -> Mapping[int, Figures]:
        return timeline(sums_of(self._runtime.store), span)
