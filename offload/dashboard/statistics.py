"""Counters for pages: totals over a time range, and timelines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offload.dashboard.caching import TTLCache
from offload.hooks.runtime import Runtime
from offload.metrics.latest import Noted, error_log_of
from offload.metrics.report import Figures, Report, report, timeline
from offload.metrics.storage import sums_of
from offload.stores.sums import SPANS, Span

_LEAST = 5  # minimum number of steps of a timeline
_RATE = 5  # minutes over which rates are averaged
_SECONDS = 2.0  # seconds to reuse counters before reading them again


@dataclass(frozen=True)
class TimeRange:
    """A time range ending now.

    Attributes:
        name: identifies it in URLs.
        label: its name on pages.
        seconds: its length; None for all time.
        span: resolution of its charts.
    """

    name: str
    label: str
    seconds: int | None
    span: Span

    @property
    def phrase(self) -> str:
        """Text for use within a sentence, such as ``in the last 3 hours``."""
        if self.seconds is None:
            return "since counting began"
        return f"in the last {self.label.removeprefix('1 ')}"


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
"""All time ranges by name, shortest first."""
DEFAULT = TIME_RANGES["1h"]


@dataclass(frozen=True)
class Timeline:
    """Counters of consecutive minutes, hours, or days, without gaps.

    Attributes:
        seconds: length of a step.
        figures: counters by the start of each step, in seconds since 1970.
    """

    seconds: int
    figures: Mapping[int, Figures]

    @classmethod
    def filled(
        cls, seconds: int, found: Mapping[int, Figures], start: float | None, now: float
    ) -> Timeline:
        """Return a timeline of *found* from *start* to *now*, with zeros for missing steps.

        If *start* is None, the timeline starts with the first counts. It has at least `_LEAST`
        steps so that a chart has some width. It omits the current minute, whose partial counts
        would look like a drop, unless that is the only one with counts.
        """
        kept = sorted(at for at in found if start is None or at + seconds > start)
        if not kept:
            return cls(seconds, {})
        last = max(int(now) // seconds * seconds, kept[-1])
        if seconds == SPANS["minute"] and last + seconds > now and kept[0] < last:
            last -= seconds
        first = kept[0] if start is None else min(kept[0], int(start // seconds + 1) * seconds)
        first = min(first, last - (_LEAST - 1) * seconds)
        return cls(
            seconds,
            {at: found.get(at, Figures({})) for at in range(first, last + 1, seconds)},
        )


@dataclass(frozen=True)
class Rates:
    """Average rates of the last few minutes.

    Attributes:
        minutes: number of complete minutes averaged.
        figures: totals over these minutes.
        latest: start of the last minute with counts, in seconds since 1970; None if nothing was
            counted in the last hours.
    """

    minutes: int
    figures: Figures
    latest: int | None

    def per_minute(self, *names: str) -> float:
        """Return the sum of these counters per minute, on average."""
        return sum(self.figures[name] for name in names) / self.minutes

    def per_second(self, name: str) -> float:
        """Return a counter per second, on average."""
        return self.figures[name] / (self.minutes * SPANS["minute"])


class Statistics:
    """Reads the store's counters, at most once every `_SECONDS`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._reports: TTLCache[Report] = TTLCache(self._report, _SECONDS)
        self._lines: TTLCache[Mapping[int, Figures]] = TTLCache(self._line, _SECONDS)
        self._errors: TTLCache[Sequence[Noted]] = TTLCache(self._read_errors, _SECONDS)

    def report(self, time_range: TimeRange, *, tasks: bool = False) -> Report:
        """Return the totals of the counters; with *tasks*, also by task.

        Raises ConfigurationError if the store keeps no statistics, and StoreUnavailable.
        """
        return self._reports.get(time_range, tasks)

    def timeline(self, time_range: TimeRange, start: float | None) -> Timeline:
        """Return the counters of each step since *start*, in seconds since 1970.

        Raises the same errors as `report`.
        """
        found = self._lines.get(time_range.span)
        return Timeline.filled(SPANS[time_range.span], found, start, time.time())

    def rates(self) -> Rates:
        """Return the rates of the last complete minutes. Raises the same errors as `report`."""
        found = self._lines.get("minute")
        current = int(time.time()) // SPANS["minute"] * SPANS["minute"]
        first = current - _RATE * SPANS["minute"]
        recent = [each.counts for at, each in found.items() if first <= at < current]
        return Rates(_RATE, Figures.sum(recent), max(found, default=None))

    def shortest(self) -> TimeRange:
        """Return the shortest time range with counts, or the shortest of all if there are none.

        Raises the same errors as `report`.
        """
        now = time.time()
        for time_range in TIME_RANGES.values():
            if time_range.seconds is None:
                return time_range if self.report(time_range).total.counts else DEFAULT
            start = now - time_range.seconds
            if any(at + SPANS[time_range.span] > start for at in self._lines.get(time_range.span)):
                return time_range
        return DEFAULT

    def errors(self) -> Sequence[Noted]:
        """Return the latest errors of each kind, task, and argument, newest first."""
        return self._errors.get()

    def _read_errors(self) -> Sequence[Noted]:
        log = error_log_of(self._runtime.store)
        return log.read() if log is not None else []

    def _report(self, time_range: TimeRange, tasks: bool) -> Report:
        sums = sums_of(self._runtime.store)
        self._runtime.recorder.write()
        return report(sums, time_range.seconds, tasks=tasks)

    def _line(self, span: Span) -> Mapping[int, Figures]:
        return timeline(sums_of(self._runtime.store), span)
