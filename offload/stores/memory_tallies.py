"""What is counted, in this process's memory."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from offload.stores.processes import PerProcess
from offload.stores.tallies import FIELDS, KEPT, LABEL, SPANS, Rider, Span, Tally

__all__ = ("MemoryTallies",)


class MemoryTallies:
    """Args: *now* returns seconds since 1970."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._locks = PerProcess(threading.Lock)
        self._rider: Rider | None = None
        self.clear()

    def ride(self, rider: Rider) -> None:
        """There are no round trips: what the rider has is taken when somebody asks."""
        self._rider = rider

    def _take(self) -> None:
        tally = self._rider.due() if self._rider is not None else None
        if tally is not None:
            self.add(tally)

    def add(self, tally: Tally) -> None:
        now = int(self._now())
        with self._locks.get():
            if self._seen.get(tally.process) == tally.number:
                return
            self._seen[tally.process] = tally.number
            _add(self._total, tally.total)
            for span, seconds in SPANS.items():
                counts = self._series[span].setdefault(now - now % seconds, Counter())
                _add(counts, _bare(tally.series) if span == "minute" else tally.series)
                for begin in [b for b in self._series[span] if b < now - KEPT[span]]:
                    del self._series[span][begin]

    def total(self) -> dict[str, int]:
        self._take()
        with self._locks.get():
            return dict(self._total)

    def series(self, span: Span, since: float | None = None) -> dict[int, dict[str, int]]:
        self._take()
        first = self._now() - (KEPT[span] if since is None else since) - SPANS[span]
        with self._locks.get():
            kept = sorted(self._series[span].items())
            return {begin: dict(counts) for begin, counts in kept if begin > first}

    def clear(self) -> None:
        self._seen: dict[str, int] = {}
        self._total: Counter[str] = Counter()
        self._series: dict[Span, dict[int, Counter[str]]] = {span: {} for span in SPANS}


def _bare(amounts: Mapping[str, int]) -> Counter[str]:
    """Return amounts by the name of the counter alone."""
    found: Counter[str] = Counter()
    for text, amount in amounts.items():
        found[text.partition(LABEL)[0]] += amount
    return found


def _add(counts: Counter[str], amounts: Mapping[str, int]) -> None:
    for text, amount in amounts.items():
        if text not in counts and len(counts) >= FIELDS:
            name = text.partition(LABEL)[0]
            text = f"{name}{LABEL}(other){LABEL}"  # noqa: PLW2901 (it is counted under that)
        counts[text] += amount
