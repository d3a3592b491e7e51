"""`SnapshotTallies`: the two accounts over a shelf."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator

from offload.errors import OffloadError
from offload.stores.accounts import positive
from offload.stores.processes import PerProcess
from offload.stores.protocols import SweepItem
from offload.stores.snapshots.folding import Folder
from offload.stores.snapshots.part import Clock, Part
from offload.stores.snapshots.reading import Reader
from offload.stores.snapshots.shelf import Head, Shelf
from offload.stores.tallies import Rider, Span, Tally

__all__ = ("SnapshotTallies",)

logger = logging.getLogger(__name__)

SELDOM = 32
"""One of so many writings looks whether there is something to fold."""
MANY = 64
"""Parts that are folded by who writes; a sweep folds fewer."""


class SnapshotTallies:
    """See `offload.stores.snapshots`.

    Args:
        clocks: as of `Part`.
    """

    rides = False

    def __init__(
        self, shelf: Shelf, head: Head, clocks: tuple[Clock, ...] = (time.monotonic, time.time)
    ) -> None:
        self._shelf = shelf
        self._parts = PerProcess(lambda: Part(shelf, clocks))
        self._reader = Reader(shelf, head)
        self._folder = Folder(shelf, head, self._reader, clocks[0])

    def ride(self, rider: Rider) -> None:
        """Do nothing: what is asked of the store carries nothing else."""

    def add(self, tally: Tally) -> None:
        self._parts.get().add(tally)
        if not random.randrange(SELDOM):  # noqa: S311 (not for secrets)
            self._fold()

    def end(self) -> None:
        self._parts.get().end()

    def total(self) -> dict[str, int]:
        return positive(self._reader.sum().total)

    def series(self, span: Span, since: float | None = None) -> dict[int, dict[str, int]]:
        return self._reader.sum().counted(span, since, self._shelf.now())

    def clear(self) -> None:
        self._folder.clear()

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Fold what is over, unless *dry_run*; remove what cannot be read, and yield it."""
        return self._folder.sweep(dry_run=dry_run)

    def _fold(self) -> None:
        try:
            self._folder.fold(MANY)
        except OffloadError as exc:  # the next one will
            logger.info("%s: statistics were not folded: %s", self._shelf.url, exc)
