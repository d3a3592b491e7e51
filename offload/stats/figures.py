"""What the counters say about an app, a task or an argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import inf

from offload.counters import BOUNDS

__all__ = ("Figures",)


@dataclass(frozen=True)
class Figures:
    """Counters of one thing, by name; what was not counted is 0."""

    counts: Mapping[str, int]

    def __getitem__(self, name: str) -> int:
        return self.counts.get(name, 0)

    @property
    def deduplication(self) -> float | None:
        """Bytes that travelled by reference for each that was uploaded; None before the first."""
        if not self["bytes_offloaded"]:
            return None
        uploaded = self["bytes_uploaded"]
        return self["bytes_offloaded"] / uploaded if uploaded else inf

    @property
    def hit_ratio(self) -> float | None:
        """The part of what the node cache was asked for that it had; None before the first."""
        asked = self["cache_hits"] + self["cache_misses"]
        return self["cache_hits"] / asked if asked else None

    @property
    def errors(self) -> dict[str, int]:
        """Errors by kind, those that happened."""
        found = {
            name.removeprefix("errors_"): n
            for name, n in self.counts.items()
            if name.startswith("errors_")
        }
        return {kind: number for kind, number in sorted(found.items()) if number}

    def times(self, step: str) -> list[int]:
        """Return how often *step* took at most each of `offload.counters.BOUNDS`, and ever."""
        numbers = [self[f"{step}_seconds_{number}"] for number in range(len(BOUNDS) + 1)]
        return list(accumulate(numbers))

    def seconds(self, step: str) -> float:
        """Return how long *step* took in all, in seconds."""
        return self[f"{step}_microseconds"] / 1e6

    def quantile(self, step: str, part: float) -> float | None:
        """Return the bound, in seconds, within which *part* of all times lie.

        Infinity beyond the last bound, None if there were none.
        """
        times = self.times(step)
        if not times[-1]:
            return None
        wanted = part * times[-1]
        bounds = (*BOUNDS, inf)
        return next(b for b, number in zip(bounds, times, strict=True) if number >= wanted)

    @classmethod
    def sum(cls, parts: Iterable[Mapping[str, int]]) -> Figures:
        """Return the figures of several things together."""
        rest = iter(parts)
        counts = dict(next(rest, {}))
        for part in rest:
            for name, amount in part.items():
                counts[name] = counts.get(name, 0) + amount
        return cls(counts)
