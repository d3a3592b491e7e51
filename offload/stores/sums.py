"""Numbers added up in a store: in total, and by minute, hour, and day.

The *total* is kept forever; the *series* of minutes, hours, and days expire after `KEPT`. A name
consists of parts separated by `LABEL`. The series of minutes uses only the first parts.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from offload.stores.processes import PerProcess

LABEL = "\x1f"
FIELDS = 20_000
"""Maximum number of names in a total or a span; further ones are added under ``(other)``."""
OBJECT = f"{LABEL}object:"
"""Part of names that may be very numerous: they get at most half of `FIELDS`."""

Span = Literal["minute", "hour", "day"]
SPANS: Mapping[Span, int] = {"minute": 60, "hour": 3600, "day": 86400}
"""Length of each span in seconds."""
KEPT: Mapping[Span, int] = {"minute": 3 * 3600, "hour": 3 * 86400, "day": 90 * 86400}
"""Seconds to keep the numbers of each span."""

Amounts = dict[str, int]


@dataclass(frozen=True)
class CounterBatch:
    """Numbers to add, from one process.

    Attributes:
        process: a name that is unique to the process.
        number: increases with each batch of the process; a batch that arrives twice counts once.
        total: amounts by name to add to the total.
        series: amounts by name to add to the series.
    """

    process: str
    number: int
    total: Mapping[str, int]
    series: Mapping[str, int]


class BatchSource(Protocol):
    """Provides batches to send with requests that a store makes anyway."""

    def next_batch(self) -> CounterBatch | None:
        """Return the batch that is due; None if none is."""

    def requeue(self, batch: CounterBatch) -> None:
        """Take back a batch that wasn't sent: it is due again, with the same number."""


class Sums(Protocol):
    """The total and the series in a store. All methods raise the store's usual errors.

    Attributes:
        piggybacks: whether `piggyback` has an effect. If not, the caller must `add` regularly.
    """

    @property
    def piggybacks(self) -> bool: ...

    def piggyback(self, source: BatchSource) -> None:
        """From now on, send the batches of *source* with other requests."""

    def add(self, batch: CounterBatch) -> None:
        """Add a batch now, in one round trip; sometimes a few more if `piggybacks` is false."""

    def end(self) -> None:
        """Note that this process has nothing more to add for now."""

    def total(self) -> Amounts:
        """Return the total."""

    def series(self, span: Span, since: float | None = None) -> dict[int, Amounts]:
        """Return the series of minutes, hours, or days, by start in seconds since 1970.

        Args:
            since: return only those that end in the last *since* seconds; None returns all.
        """

    def clear(self) -> None:
        """Reset everything to zero."""


class TimedSums:
    """The total and the series, in memory. Not thread-safe."""

    def __init__(self) -> None:
        self.total: Amounts = {}
        self.series: dict[Span, dict[int, Amounts]] = {span: {} for span in SPANS}

    def __bool__(self) -> bool:
        return bool(self.total) or any(self.series.values())

    def count(self, batch: CounterBatch, now: float) -> None:
        """Add a batch at *now* (seconds since 1970)."""
        _add(self.total, batch.total)
        for span, seconds in SPANS.items():
            amounts = _bare(batch.series) if span == "minute" else batch.series
            start = int(now) - int(now) % seconds
            _add(self.series[span].setdefault(start, {}), amounts)

    def add(self, other: TimedSums, times: int = 1) -> None:
        """Add *other* multiplied by *times*; -1 subtracts it."""
        _add(self.total, other.total, times)
        for span, series in other.series.items():
            for start, amounts in series.items():
                _add(self.series[span].setdefault(start, {}), amounts, times)

    def prune(self, now: float) -> None:
        """Drop numbers of the series that have expired at *now*."""
        for span, series in self.series.items():
            for start in [start for start in series if start + SPANS[span] < now - KEPT[span]]:
                del series[start]

    def counted(self, span: Span, since: float | None, now: float) -> dict[int, Amounts]:
        """Return a series like `Sums.series`, without zeros."""
        first = now - (KEPT[span] if since is None else since) - SPANS[span]
        last = now + SPANS[span]  # ignore later ones, written by a client with a wrong clock
        kept = sorted(start for start in self.series[span] if first < start <= last)
        found = {start: positive(self.series[span][start]) for start in kept}
        return {start: amounts for start, amounts in found.items() if amounts}


class MemorySums:
    """Sums in this process's memory; *now* returns seconds since 1970."""

    piggybacks = True

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._locks = PerProcess(threading.Lock)
        self._source: BatchSource | None = None
        self.clear()

    def piggyback(self, source: BatchSource) -> None:
        """Take batches whenever the sums are read: memory needs no requests."""
        self._source = source

    def _take(self) -> None:
        batch = self._source.next_batch() if self._source is not None else None
        if batch is not None:
            self.add(batch)

    def add(self, batch: CounterBatch) -> None:
        with self._locks.get():
            if self._seen.get(batch.process) == batch.number:
                return
            self._seen[batch.process] = batch.number
            now = self._now()
            self._sums.count(batch, now)
            self._sums.prune(now)

    def end(self) -> None:
        """Do nothing, because everything has been written."""

    def total(self) -> Amounts:
        self._take()
        with self._locks.get():
            return dict(self._sums.total)

    def series(self, span: Span, since: float | None = None) -> dict[int, Amounts]:
        self._take()
        with self._locks.get():
            return self._sums.counted(span, since, self._now())

    def clear(self) -> None:
        self._seen: dict[str, int] = {}
        self._sums = TimedSums()


def positive(amounts: Mapping[str, int]) -> Amounts:
    """Return the amounts above zero."""
    return {text: amount for text, amount in amounts.items() if amount > 0}


def _bare(amounts: Mapping[str, int]) -> Counter[str]:
    """Return amounts by the first part of their names."""
    found: Counter[str] = Counter()
    for text, amount in amounts.items():
        found[text.partition(LABEL)[0]] += amount
    return found


def _add(counts: Amounts, amounts: Mapping[str, int], times: int = 1) -> None:
    for text, amount in amounts.items():
        if text not in counts and len(counts) >= (FIELDS // 2 if OBJECT in text else FIELDS):
            name = text.partition(LABEL)[0]
            text = f"{name}{LABEL}(other){LABEL}"  # noqa: PLW2901 (it is counted under that)
        counts[text] = counts.get(text, 0) + amount * times
