"""Storage of counters: in a store that can add numbers, or in small files of each process."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator

from offload.errors import ConfigurationError, OffloadError
from offload.metrics.folding import LIFE, Clock, Folder
from offload.metrics.snapshots import (
    END,
    Head,
    NumberedHead,
    PointerHead,
    Reader,
    Snapshot,
    new_part,
    write_snapshot,
)
from offload.stores.capabilities import AddsNumbers, KeepsFiles, SmallFiles, tiers_of
from offload.stores.processes import PerProcess
from offload.stores.protocols import Store, SweepItem
from offload.stores.sums import BatchSource, CounterBatch, Span, Sums, TimedSums, positive

logger = logging.getLogger(__name__)

_SUMS = "_offload_sums"


def has_counters(store: Store) -> bool:
    """Return whether *store* can keep counters."""
    return isinstance(tiers_of(store)[0], (AddsNumbers, KeepsFiles))


def sums_of(store: Store) -> Sums:
    """Return the counters of *store*, or of its first tier.

    Raises ConfigurationError if the store can't keep counters.
    """
    first = tiers_of(store)[0]
    if isinstance(first, AddsNumbers):
        return first.sums
    if isinstance(first, KeepsFiles):
        files = first.files
        kept = vars(files)  # no table of this module: sums refer to their files, so it would leak
        if _SUMS not in kept:
            head = PointerHead(first.pointers) if files.has_pointers else NumberedHead(files)
            kept.setdefault(_SUMS, FileSums(files, head))  # threads agree on one
        sums: FileSums = kept[_SUMS]
        return sums
    raise ConfigurationError(
        f"{store.url} can't keep statistics: it has neither `sums` nor `files` "
        "(offload.stores.capabilities)",
        store=store.url,
    )


def sweep_sums(store: Store, *, dry_run: bool) -> Iterator[SweepItem]:
    """Yield unreadable files. Unless *dry_run*, delete them, and fold those of ended processes."""
    sums = sums_of(store) if has_counters(store) else None
    return sums.sweep(dry_run=dry_run) if isinstance(sums, FileSums) else iter(())


SELDOM = 32
"""One in this many writes checks whether there are parts to fold."""
MANY = 64
"""Minimum number of complete parts for a writer to fold them; a sweep folds any number."""


class FileSums:
    """Sums in small files; see `offload.metrics.snapshots`.

    Args:
        clocks: see `PartWriter`.
    """

    piggybacks = False

    def __init__(
        self, files: SmallFiles, head: Head, clocks: tuple[Clock, ...] = (time.monotonic, time.time)
    ) -> None:
        self._files = files
        self._parts = PerProcess(lambda: PartWriter(files, clocks))
        self._reader = Reader(files, head)
        self._folder = Folder(files, head, self._reader, clocks[0])

    def piggyback(self, source: BatchSource) -> None:
        """Do nothing: no request of these stores can carry a batch."""

    def add(self, batch: CounterBatch) -> None:
        self._parts.get().add(batch)
        if not random.randrange(SELDOM):  # noqa: S311 (not for secrets)
            self._fold()

    def end(self) -> None:
        self._parts.get().end()

    def total(self) -> dict[str, int]:
        return positive(self._reader.sum().total)

    def series(self, span: Span, since: float | None = None) -> dict[int, dict[str, int]]:
        return self._reader.sum().counted(span, since, self._files.now())

    def clear(self) -> None:
        self._folder.clear()

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Yield unreadable parts. Unless *dry_run*, delete them, and fold complete ones."""
        return self._folder.sweep(dry_run=dry_run)

    def _fold(self) -> None:
        try:
            self._folder.fold(MANY)
        except OffloadError as exc:  # a later write folds
            logger.info("%s: cannot fold statistics: %s", self._files.url, exc)


class PartWriter:
    """Writes the parts of a process, one after the other. Thread-safe.

    Args:
        clocks: functions that return ascending seconds. A part's age is the longest by any of
            them, because one may stop while the machine sleeps, and another may be set back.
    """

    def __init__(self, files: SmallFiles, clocks: tuple[Clock, ...]) -> None:
        self._files = files
        self._clocks = clocks
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}
        self._start(TimedSums())

    def _start(self, sums: TimedSums) -> None:
        self._name = new_part()
        self._started = self._now()
        self._known: tuple[float, ...] | None = None  # when the file last matched the counts
        self._is_there = False
        self._sums = sums
        self._unsure = TimedSums()  # counts that may not be in the file
        self._unsure.add(sums)

    def add(self, batch: CounterBatch) -> None:
        """Add a batch and write the part; a batch that arrives twice counts once."""
        with self._lock:
            self._rotate()
            if self._seen.get(batch.process) != batch.number:
                self._seen[batch.process] = batch.number
                for each in (self._sums, self._unsure):
                    each.count(batch, self._files.now())
            if self._unsure:
                self._write()

    def end(self) -> None:
        """Mark the current part, if any, as complete."""
        with self._lock:
            if self._is_there and not self._unsure:
                self._close()

    def _rotate(self) -> None:
        """Start another part if the current one is old."""
        if not self._unsure:
            if self._age(self._started) > LIFE:
                self._close()
        elif self._known is not None and self._age(self._known) > LIFE:
            # The store was unavailable for so long that the part may have been folded.
            self._start(self._unsure)

    def _write(self) -> None:
        now = self._now()
        if self._known is None:
            self._known = now
        self._files.write(self._name, write_snapshot(Snapshot(self._sums)))
        self._known = now
        self._is_there = True
        self._unsure = TimedSums()

    def _close(self) -> None:
        name, was_there = self._name, self._is_there
        self._start(TimedSums())
        if was_there:
            self._files.write(name + END, b"")

    def _now(self) -> tuple[float, ...]:
        return tuple(clock() for clock in self._clocks)

    def _age(self, since: tuple[float, ...]) -> float:
        return max(now - then for now, then in zip(self._now(), since, strict=True))
