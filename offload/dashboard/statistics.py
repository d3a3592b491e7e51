"""What was counted, as pages ask for it: in a time_range of time, and along it."""

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

_SECONDS = 2.0  # for which what was read is shown again


@dataclass(frozen=True)
class TimeRange:
    """A time up to now that pages can be asked for.

    Attributes:
        name: in addresses.
        label: for people.
        seconds: None: since anything was counted.
        span: in which steps it is drawn.
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
"""All of them, by name."""


@dataclass(frozen=True)
class Timeline:
    """Figures by when their minutes, hours or days began (seconds since 1970), without gaps."""

    seconds: int
    figures: Mapping[int, Figures]

    @classmethod
    def filled(
        cls, seconds: int, found: Mapping[int, Figures], begin: float | None, now: float
    ) -> Timeline:
        """Return *found* since *begin*, with nothing where nothing was counted.

        The minute that is not over would look like a fall; it is left out once there are others.
        """
        kept = sorted(at for at in found if begin is None or at + seconds > begin)
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
        """Return what was counted; with *tasks*, also by task.

        Raises ConfigurationError for a store without statistics, StoreUnavailable.
        """
        return self._reports.get(time_range, tasks)

    def timeline(self, time_range: TimeRange, begin: float | None) -> Timeline:
        """Return what was counted since *begin*, along the time; raises as `report` does."""
        found = self._lines.get(time_range.span)
        return Timeline.filled(SPANS[time_range.span], found, begin, time.time())

    def _report(self, time_range: TimeRange, tasks: bool) -> Report:
        sums = sums_of(self._runtime.store)
        self._runtime.recorder.write()
        return report(sums, time_range.seconds, tasks=tasks)

    def _line(self, span: Span) -> Mapping[int, Figures]:
        return timeline(sums_of(self._runtime.store), span)
