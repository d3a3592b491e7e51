"""What each threshold would do to the values that were counted, and which would pay best.

Values are counted in classes of sizes that begin at the candidates, so how many leave the broker,
and with how many bytes, is exact. What they cost is a model: lines through the CPU time that a task
takes by the size of its argument, of publisher, worker and server together (`make bench ARGS=6`;
docs/decisions.md has its table). A value in a message costs so much for each byte. One that is
offloaded costs a constant, far less for each byte, and less still for bytes that the store had.
Machines differ in the seconds, and little in where the lines meet: at about 90 kB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from offload.metrics.counters import SIZES, size_names
from offload.metrics.report import Figures, Report
from offload.text import human_cpu_time, human_size, human_threshold

__all__ = ("Candidate", "Choices", "Estimate", "estimate")

OFFLOADED = 2.9e-3
"""Seconds of CPU that a value costs by being offloaded, besides its bytes."""
IN_MESSAGE = 35e-9
"""Seconds for each byte of a value in a message."""
STORED = 3.2e-9
"""Seconds for each byte that is stored."""
REPEATED = 0.5e-9
"""Seconds for each byte that the store had."""

_CHUNKED = 1 << 20  # bytes from which a value's chunks are read after its root


@dataclass(frozen=True)
class Candidate:
    """What a threshold would do.

    Attributes:
        threshold: bytes from which a value would be offloaded.
        values: how many would leave the broker.
        bytes: their serialised bytes.
        stored_bytes: those of them that would be stored, before compression; the others were
            there.
        round_trips: with the store, at most: to ask for a value and hold it, to write what is new,
            to read it, its chunks if it is of 1 MiB or more, and to release it. What a node has in
            its cache is not read. How many values are new is taken from their bytes.
        saved_seconds: CPU time that would be saved on all sides; below 0: spent.
    """

    threshold: int
    values: int
    bytes: int
    stored_bytes: int
    round_trips: int
    saved_seconds: float


@dataclass(frozen=True)
class Choices:
    """What thresholds would do for an app or a task.

    Attributes:
        values: how many were counted.
        bytes: their serialised bytes.
        candidates: by rising threshold; those below what was counted from are not known.
        best: the candidate that saves most; of several the one next to the threshold in force. None
            if none saves anything.
    """

    values: int
    bytes: int
    candidates: tuple[Candidate, ...]
    best: Candidate | None

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """What thresholds would do.

    Attributes:
        begin: since when values were counted, in seconds since 1970; None: since any were.
        threshold: the one in force, in bytes.
        counted_from: bytes from which all values were counted: where values are offloaded, smaller
            ones are not looked at.
        total: for the app.
        tasks: for each task with values that were counted; "" is what is about none. Only of all
            time: over time sizes are not told apart by task.
    """

    begin: float | None
    threshold: int
    counted_from: int
    total: Choices
    tasks: Mapping[str, Choices]

    @property
    def advice(self) -> str:
        """A sentence that says what to do."""
        total, best = self.total, self.total.best
        if not total.values:
            return "No sizes were counted yet."
        if best is None:
            return (
                f"No threshold pays: {total.values:,} values of {human_size(total.bytes)} cost "
                "less in their messages, unless the broker's memory is what is scarce."
            )
        does = (
            f"{best.values:,} of {total.values:,} values "
            f"({best.bytes / total.bytes:.0%} of the bytes) would leave the broker, "
            f"{human_size(best.stored_bytes)} be stored, and about "
            f"{human_cpu_time(best.saved_seconds)} of CPU be saved"
        )
        if best.threshold == self.threshold:
            return f"The current threshold, {human_threshold(best.threshold)}, pays best: {does}."
        return (
            f"A threshold of {human_threshold(best.threshold)} would pay best "
            f"(offload_threshold = {best.threshold}, now {self.threshold}): {does}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data, the advice as well."""
        return {
            "since": self.begin,
            "threshold": self.threshold,
            "counted_from": self.counted_from,
            "advice": self.advice,
            "total": self.total.as_dict(),
            "tasks": {task: choices.as_dict() for task, choices in sorted(self.tasks.items())},
        }


def estimate(found: Report, threshold: int) -> Estimate:
    """Return what thresholds would do to the values that *found* counts.

    Args:
        threshold: the one in force, in bytes.
    """
    counted_from = threshold if found.total["values_offloaded"] else min(threshold, SIZES[0])
    tasks = {
        task: choices
        for task, each in found.tasks.items()
        if (choices := _choices(each, threshold, counted_from)).values
    }
    return Estimate(
        found.begin,
        threshold,
        counted_from,
        _choices(found.total, threshold, counted_from),
        tasks if found.begin is None else {},
    )


@dataclass(frozen=True)
class _Size:
    """What was counted of a class of sizes."""

    begin: int
    values: int
    bytes: int
    repeated: int

    @classmethod
    def of(cls, figures: Figures, begin: int) -> _Size:
        values, size, repeated = (figures[name] for name in size_names(begin))
        return cls(begin, values, size, min(repeated, size))

    def beside(self, above: Candidate) -> Candidate:
        """Return the candidate at which these leave the broker besides those of *above*."""
        stored = self.bytes - self.repeated
        new = round(self.values * stored / self.bytes) if self.bytes else 0
        reads = 2 if self.begin >= _CHUNKED else 1
        return Candidate(
            threshold=self.begin,
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
    sizes = [_Size.of(figures, begin) for begin in (0, *SIZES)]
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
    return Choices(
        values=sum(size.values for size in sizes),
        bytes=sum(size.bytes for size in sizes),
        candidates=tuple(reversed(known)),
        best=best,
    )
