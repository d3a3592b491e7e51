"""Fold complete parts and the last fold into a new one; see `offload.metrics.snapshots`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from offload.errors import StoreUnavailable
from offload.metrics.snapshots import (
    END,
    Found,
    FromLater,
    Head,
    Reader,
    Snapshot,
    Unreadable,
    is_fold,
    is_part,
    new_fold,
    write_snapshot,
)
from offload.stores.capabilities import SmallFile, SmallFiles
from offload.stores.protocols import SweepItem

Clock = Callable[[], float]

LIFE = 3600.0
"""Seconds after which a process starts a new part."""
SILENT = 2 * LIFE
"""Seconds without a write after which a part counts as complete."""
GRACE = 600.0
"""Seconds to keep a folded part before deleting it."""
STRAY = 86400.0
"""Seconds after which unused files are deleted, and for which a fold remembers parts whose writer
never completed them: a suspended writer may wake up and write its part again."""
_AT_ONCE = 1000
_LONGEST = 60.0  # seconds after which a fold that isn't written yet is abandoned
_TURNS = 10


@dataclass(frozen=True)
class _Parts:
    """The statistics files of a store.

    Attributes:
        over, open: complete parts, and parts that may still be written.
        ended: parts that their writer marked as complete.
        others: folds, and remains of deleted parts.
    """

    over: Mapping[str, SmallFile]
    open: Collection[str]
    ended: Collection[str]
    others: Sequence[SmallFile]


class Folder:
    """Folds parts. *clock* returns monotonic seconds."""

    def __init__(
        self,
        files: SmallFiles,
        head: Head,
        reader: Reader,
        clock: Clock,
    ) -> None:
        self._files = files
        self._head = head
        self._reader = reader
        self._clock = clock

    def fold(self, least: int) -> bool:
        """Fold complete parts if there are at least *least*; delete parts folded earlier.

        Return whether there were enough parts. Raises StoreUnavailable.
        """
        start = self._clock()
        now, parts = self._scan()
        if len(parts.over) < least:
            return False
        name, head = self._reader.head()
        self._clean(parts, name, head, now)
        old = head if isinstance(head, Snapshot) else Snapshot()
        fresh = [part for part in parts.over if part not in old.covers]
        # If a later version wrote the head, leave folding to processes that can read it.
        if len(fresh) >= least and not isinstance(head, FromLater):
            self._swap(name, self._folded(old, fresh[:_AT_ONCE], parts, now), start)
        return True

    def clear(self) -> None:
        """Reset all counters to zero, by a fold that subtracts them. Raises StoreUnavailable."""
        for _ in range(_TURNS):
            start = self._clock()
            now, parts = self._scan()
            name, head = self._reader.head()
            covers = dict(head.covers) if isinstance(head, Snapshot) else {}
            new = Snapshot(covers=covers | _until(parts.over, parts, now))
            for part, found in self._reader.parts([*parts.open]).items():
                if isinstance(found, Snapshot) and part not in covers:
                    new.sums.add(found.sums, -1)
            if self._swap(name, new, start):
                return
        raise StoreUnavailable(
            f"other processes folded the statistics in {self._files.url} {_TURNS} times in a row",
            store=self._files.url,
        )

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Yield unreadable parts. Unless *dry_run*, delete them, and fold complete parts."""
        if not dry_run and not self.fold(1):
            return
        now, parts = self._scan()
        aged = [part for part, entry in parts.over.items() if now - entry.written >= STRAY]
        for part, found in self._reader.parts(aged).items():
            if isinstance(found, Unreadable):
                if not dry_run:
                    self._remove([part], parts)
                size = parts.over[part].size
                yield SweepItem("file", f"stats/{part}", size, "unreadable statistics")

    def _scan(self) -> tuple[float, _Parts]:
        """Return the current time and the files."""
        entries = {entry.name: entry for entry in self._files.entries()}
        now = self._files.sure_time() if entries else self._files.now()
        parts = {name: entry for name, entry in entries.items() if is_part(name)}
        ended = {name.removesuffix(END) for name in entries if is_part(name.removesuffix(END))}
        ended = {name for name in ended if name + END in entries}
        over = {
            name: entry
            for name, entry in parts.items()
            if name in ended or now - entry.written >= SILENT
        }
        return now, _Parts(
            over=over,
            open=parts.keys() - over.keys(),
            ended=ended,
            others=[
                entry
                for name, entry in entries.items()
                if is_fold(name) or (name.endswith(END) and name.removesuffix(END) not in parts)
            ],
        )

    def _folded(self, old: Snapshot, fresh: Sequence[str], parts: _Parts, now: float) -> Snapshot:
        new = Snapshot()
        new.sums.add(old.sums)
        readable = []
        for part, found in self._reader.parts(fresh).items():
            if isinstance(found, Snapshot):
                new.sums.add(found.sums)
                readable.append(part)
        new.sums.prune(now)
        there = parts.over.keys() | parts.open
        known = {part: until for part, until in old.covers.items() if part in there or until > now}
        new.covers = known | _until(readable, parts, now)
        return new

    def _swap(self, old: str | None, new: Snapshot, start: float) -> bool:
        name, content = new_fold(old), write_snapshot(new)
        if self._clock() - start > _LONGEST:
            return False
        self._files.write(name, content)
        done = self._head.swap(old, name)
        unused = old if done else name
        if unused is not None:
            self._files.remove([unused])
        return done

    def _clean(self, parts: _Parts, name: str | None, head: Found | None, now: float) -> None:
        covers = head.covers if isinstance(head, Snapshot) else {}
        self._remove([part for part in parts.over if covers.get(part, now) < now], parts)
        stray = [e.name for e in parts.others if now - e.written >= STRAY and e.name != name]
        self._files.remove(stray)

    def _remove(self, names: Sequence[str], parts: _Parts) -> None:
        self._files.remove(names)
        self._files.remove([name + END for name in names if name in parts.ended])


def _until(names: Iterable[str], parts: _Parts, now: float) -> dict[str, float]:
    """Return until when to remember each of these parts as folded, in seconds since 1970."""
    return {name: now + (GRACE if name in parts.ended else STRAY) for name in names}
