"""How much is counted now. Processes write every few seconds: a minute tells, a second does not."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offload.counters import BY_TASK
from offload.stats.figures import Figures

__all__ = ("Changes", "Recent", "last_minutes")

_MINUTE = 60
_READINGS = 12  # that are kept of a window


@dataclass(frozen=True)
class Recent:
    """What was counted in some time.

    Attributes:
        seconds: how long that is.
    """

    seconds: float
    figures: Figures

    @classmethod
    def sum(cls, parts: Sequence[Recent]) -> Recent:
        """Return what several things counted together in the same time."""
        figures = Figures.sum(part.figures.counts for part in parts)
        return cls(parts[0].seconds, figures)

    def rate(self, name: str) -> float:
        """Return how much of it was counted in a second."""
        return self.figures[name] / self.seconds


def last_minutes(line: Mapping[int, Figures], now: float) -> Recent:
    """Return what was counted in this minute and the one before.

    Args:
        line: figures of minutes, as `timeline` returns them.
        now: seconds since 1970.
    """
    begin = (now // _MINUTE - 1) * _MINUTE
    return Recent(now - begin, Figures.sum(each.counts for at, each in line.items() if at >= begin))


class Changes:
    """What is counted by task, from all-time figures that are read now and then.

    A few readings of the last *window* seconds are kept, and of them only what is counted by task
    over time; nothing is told before they span *settle* seconds.
    """

    def __init__(self, settle: float, window: float = 60.0) -> None:
        self._settle = settle
        self._window = max(window, settle)
        self._readings: deque[tuple[float, _Counts]] = deque()

    def read(self, at: float, tasks: Mapping[str, Figures]) -> dict[str, Recent]:
        """Return what was counted of each task lately; empty where that cannot be told yet.

        Args:
            at: seconds that only rise.
        """
        readings, counts = self._readings, _counts(tasks)
        if readings and _fell(readings[-1][1], counts):  # counting began anew
            readings.clear()
        while len(readings) > 1 and readings[1][0] <= at - self._window:
            readings.popleft()
        if not readings or at - readings[-1][0] >= self._window / _READINGS:
            readings.append((at, counts))
        begun, before = readings[0]
        if at - begun < max(self._settle, 1):
            return {}
        return {
            task: Recent(at - begun, Figures(_difference(after, before.get(task, {}))))
            for task, after in counts.items()
        }


_Counts = Mapping[str, Mapping[str, int]]  # by task and name


def _counts(tasks: Mapping[str, Figures]) -> _Counts:
    return {
        task: {name: figures[name] for name in BY_TASK if name in figures.counts}
        for task, figures in tasks.items()
    }


def _fell(before: _Counts, after: _Counts) -> bool:
    return any(
        after.get(task, {}).get(name, 0) < amount
        for task, counts in before.items()
        for name, amount in counts.items()
    )


def _difference(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {name: amount - before.get(name, 0) for name, amount in after.items()}
