"""Predict what each threshold would save, and recommend the best one.

Values are counted in size classes whose lower bounds are the candidate thresholds, so the number
and bytes of values that would be offloaded are exact. The cost of values follows a linear model,
fitted to the CPU time that publisher, worker, and server use per task for arguments of various
sizes (`make bench ARGS=6`; docs/explanation/decisions.md has the table). A value in a message costs
time per byte. An offloaded value costs a constant, much less per byte, and even less for bytes that
were already stored. The seconds depend on the machine, but the size at which both cost the same
hardly does: it is about 90 kB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from offload.metrics.counters import SIZES, size_names
from offload.metrics.report import Figures, Report
from offload.text import human_count, human_size, human_time_saved

OFFLOADED = 2.9e-3
"""CPU seconds per offloaded value, in addition to those per byte."""
IN_MESSAGE = 35e-9
"""CPU seconds per byte of a value in a message."""
STORED = 3.2e-9
"""CPU seconds per byte that is stored."""
REPEATED = 0.5e-9
"""CPU seconds per byte that was already stored."""

_NOTICEABLE = 0.05  # share of the CPU time that the values cost in messages
_CHECKED = 256 << 10  # values of at least this size are sent only if the store lacks them
_CHUNKED = 1 << 20  # values of at least this size have chunks, read after the root


@dataclass(frozen=True)
class Candidate:
    """Predicted effect of a threshold.

    Attributes:
        threshold: minimum size in bytes of values that would be offloaded.
        values: number of values that would be offloaded.
        bytes: their serialized bytes.
        stored_bytes: how many of *bytes* would be stored, before compression; the others are
            duplicates.
        round_trips: upper limit of round trips to the store. One each to check for a value and
            hold it, to write it if it is new (below 256 KiB, the check sends it), to read it, to
            read its chunks (from 1 MiB), and to release it. Node cache hits save some. The number
            of new values is estimated from their bytes.
        saved_seconds: CPU time saved in publisher, worker, and server; negative if more is used.
    """

    threshold: int
    values: int
    bytes: int
    stored_bytes: int
    round_trips: int
    saved_seconds: float


@dataclass(frozen=True)
class Choices:
    """Candidate thresholds for an app or a task.

    Attributes:
        values: number of values counted.
        bytes: their serialized bytes.
        candidates: in ascending order of threshold, from the smallest size that was counted.
        best: the candidate that saves the most; in a tie, the one closest to the current threshold;
            None if none saves anything.
        current: the candidate that offloads the same values as the current threshold, or slightly
            fewer; None if that is none.
    """

    values: int
    bytes: int
    candidates: tuple[Candidate, ...]
    best: Candidate | None
    current: Candidate | None

    @property
    def is_worth_changing(self) -> bool:
        """Whether the best threshold saves noticeably more than the current one."""
        if self.best is None:
            return False
        now = self.current.saved_seconds if self.current is not None else 0.0
        return self.best.saved_seconds - now >= _NOTICEABLE * self.bytes * IN_MESSAGE

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """Predicted effect of thresholds on an app and its tasks.

    Attributes:
        start: when counting started, in seconds since 1970; None for all time.
        threshold: the current threshold, in bytes.
        counted_from: the size in bytes from which all values were counted. In mode on, values
            below the threshold aren't inspected.
        total: choices for the app.
        tasks: choices for each task with counted values; "" stands for values without a task.
            Empty unless *start* is None, because sizes by task have no history.
    """

    start: float | None
    threshold: int
    counted_from: int
    total: Choices
    tasks: Mapping[str, Choices]

    @property
    def advice(self) -> str:
        """A recommendation, in a sentence or two."""
        total, best = self.total, self.total.best
        if not total.values:
            return (
                "No sizes have been counted yet. To count values below the threshold, too, set "
                'offload_mode="observe".'
            )
        if best is None:
            return (
                f"No threshold pays: {human_count(total.values, 'value')} of "
                f"{human_size(total.bytes)} cost less in messages. Offload them only if the "
                "broker's memory is scarce."
            )
        does = (
            f"{best.values:,} of {human_count(total.values, 'value')} "
            f"({best.bytes / total.bytes:.0%} of the bytes) would be offloaded, storing "
            f"{human_size(best.stored_bytes)} and saving about "
            f"{human_time_saved(best.saved_seconds)} of CPU time"
        )
        if best.threshold == self.threshold:
            return f"The current threshold, {human_size(best.threshold)}, pays best: {does}."
        if not total.is_worth_changing:
            now = total.current.saved_seconds if total.current is not None else 0.0
            return (
                f"Not worth a change: the current threshold, "
                f"{human_size(self.threshold)}, saves about {human_time_saved(now)} of CPU "
                f"time; the best, {human_size(best.threshold)}, would save "
                f"{human_time_saved(best.saved_seconds)}."
            )
        return (
            f"A threshold of {human_size(best.threshold)} would pay best "
            f"(offload_threshold = {best.threshold}, now {self.threshold}): {does}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all fields and the advice as plain data."""
        return {
            "since": self.start,
            "threshold": self.threshold,
            "counted_from": self.counted_from,
            "advice": self.advice,
            "total": self.total.as_dict(),
            "tasks": {task: choices.as_dict() for task, choices in sorted(self.tasks.items())},
        }


def estimate(found: Report, threshold: int) -> Estimate:
    """Predict the effect of thresholds on the values counted in *found*.

    Args:
        threshold: the current threshold, in bytes.
    """
    counted_from = threshold if found.total["values_offloaded"] else min(threshold, SIZES[0])
    tasks = {
        task: choices
        for task, each in found.tasks.items()
        if (choices := _choices(each, threshold, counted_from)).values
    }
    return Estimate(
        found.start,
        threshold,
        counted_from,
        _choices(found.total, threshold, counted_from),
        tasks if found.start is None else {},
    )


@dataclass(frozen=True)
class _Size:
    """Counts of a size class."""

    at_least: int
    values: int
    bytes: int
    repeated: int

    @classmethod
    def of(cls, figures: Figures, at_least: int) -> _Size:
        values, size, repeated = (figures[name] for name in size_names(at_least))
        return cls(at_least, values, size, min(repeated, size))

    def beside(self, above: Candidate) -> Candidate:
        """Return the candidate that offloads these values in addition to those of *above*."""
        stored = self.bytes - self.repeated
        checked = self.at_least >= _CHECKED and self.bytes
        new = round(self.values * stored / self.bytes) if checked else 0
        reads = 2 if self.at_least >= _CHUNKED else 1
        return Candidate(
            threshold=self.at_least,
            values=above.values + self.values,
            bytes=above.bytes + self.bytes,
            stored_bytes=above.stored_bytes + stored,
            round_trips=above.round_trips + self.values * (2 + reads) + new,
            saved_seconds=above.saved_seconds
            + self.bytes * IN_MESSAGE
            - self.values * OFFLOADED
            - stored * STORED
            - self.repeated * REPEATED,
        )


_NOTHING = Candidate(0, 0, 0, 0, 0, 0.0)


def _choices(figures: Figures, threshold: int, counted_from: int) -> Choices:
    sizes = [_Size.of(figures, at_least) for at_least in (0, *SIZES)]
    falling = accumulate(
        reversed(sizes[1:]), lambda above, size: size.beside(above), initial=_NOTHING
    )
    known = [each for each in falling if each.threshold >= counted_from and each is not _NOTHING]
    paying = [each for each in known if each.saved_seconds > 0]
    best = max(
        paying,
        key=lambda each: (each.saved_seconds, -abs(each.threshold - threshold)),
        default=None,
    )
    ascending = tuple(reversed(known))
    return Choices(
        values=sum(size.values for size in sizes),
        bytes=sum(size.bytes for size in sizes),
        candidates=ascending,
        best=best,
        current=next((each for each in ascending if each.threshold >= threshold), None),
    )
