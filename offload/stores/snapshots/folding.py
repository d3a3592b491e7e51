"""Making one fold of the last one and of parts that are over. See `offload.stores.snapshots`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from offload.errors import StoreUnavailable
from offload.stores.protocols import SweepItem
from offload.stores.snapshots.names import END, is_fold, is_part, new_fold
from offload.stores.snapshots.part import LIFE, Clock
from offload.stores.snapshots.reading import Found, Reader
from offload.stores.snapshots.shelf import Entry, Head, Shelf
from offload.stores.snapshots.written import FromLater, Snapshot, Unreadable, write

__all__ = ("Folder",)

SILENT = 2 * LIFE
"""Seconds without a writing after which a part is over whose writer did not say so."""
GRACE = 600.0
"""Seconds for which a part stays when it is folded."""
STRAY = 86400.0
"""Seconds after which files go that count for nothing; a part whose writer never said that it is
over may be written once more when that wakes, and is known for what it is for so long."""
_AT_ONCE = 1000
_LONGEST = 60.0  # seconds that folding may take until it is written
_TURNS = 10


@dataclass(frozen=True)
class _Parts:
    """What lies on a shelf.

    Attributes:
        over, open: parts that are not written any more, and the others.
        ended: parts whose writer said that they are over.
        others: folds, and what is left of parts that are gone.
    """

    over: Mapping[str, Entry]
    open: Collection[str]
    ended: Collection[str]
    others: Sequence[Entry]


class Folder:
    """Args: *clock*: seconds that only rise."""

    def __init__(
        self,
        shelf: Shelf,
        head: Head,
        reader: Reader,
        clock: Clock,
    ) -> None:
        self._shelf = shelf
        self._head = head
        self._reader = reader
        self._clock = clock

    def fold(self, least: int) -> bool:
        """Fold what is over, if that is at least so many parts, and remove what was.

        Returns whether that many are over.
        """
        begun = self._clock()
        now, parts = self._look()
        if len(parts.over) < least:
            return False
        name, head = self._reader.head()
        self._clean(parts, name, head, now)
        old = head if isinstance(head, Snapshot) else Snapshot()
        fresh = [part for part in parts.over if part not in old.covers]
        # A head of a later version is for those to fold who can read it.
        if len(fresh) >= least and not isinstance(head, FromLater):
            self._swap(name, self._folded(old, fresh[:_AT_ONCE], parts, now), begun)
        return True

    def clear(self) -> None:
        """Fold so that nothing is left."""
        for _ in range(_TURNS):
            begun = self._clock()
            now, parts = self._look()
            name, head = self._reader.head()
            covers = dict(head.covers) if isinstance(head, Snapshot) else {}
            new = Snapshot(covers=covers | _until(parts.over, parts, now))
            for part, found in self._reader.parts([*parts.open]).items():
                if isinstance(found, Snapshot) and part not in covers:
                    new.accounts.add(found.accounts, -1)
            if self._swap(name, new, begun):
                return
        raise StoreUnavailable(
            f"statistics in {self._shelf.url} were folded by others {_TURNS} times in a row",
            store=self._shelf.url,
        )

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Fold what is over, and remove what cannot be read, unless *dry_run*; yield the latter."""
        if not dry_run and not self.fold(1):
            return
        now, parts = self._look()
        aged = [part for part, entry in parts.over.items() if now - entry.written >= STRAY]
        for part, found in self._reader.parts(aged).items():
            if isinstance(found, Unreadable):
                if not dry_run:
                    self._remove([part], parts)
                size = parts.over[part].size
                yield SweepItem("file", f"stats/{part}", size, "statistics that cannot be read")

    def _look(self) -> tuple[float, _Parts]:
        """Return the time, and what lies there."""
        entries = {entry.name: entry for entry in self._shelf.entries()}
        now = self._shelf.sure_time() if entries else self._shelf.now()
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
        new.accounts.add(old.accounts)
        readable = []
        for part, found in self._reader.parts(fresh).items():
            if isinstance(found, Snapshot):
                new.accounts.add(found.accounts)
                readable.append(part)
        new.accounts.prune(now)
        there = parts.over.keys() | parts.open
        known = {part: until for part, until in old.covers.items() if part in there or until > now}
        new.covers = known | _until(readable, parts, now)
        return new

    def _swap(self, old: str | None, new: Snapshot, begun: float) -> bool:
        name, content = new_fold(old), write(new)
        if self._clock() - begun > _LONGEST:
            return False
        self._shelf.write(name, content)
        done = self._head.swap(old, name)
        unused = old if done else name
        if unused is not None:
            self._shelf.remove([unused])
        return done

    def _clean(self, parts: _Parts, name: str | None, head: Found | None, now: float) -> None:
        covers = head.covers if isinstance(head, Snapshot) else {}
        self._remove([part for part in parts.over if covers.get(part, now) < now], parts)
        stray = [e.name for e in parts.others if now - e.written >= STRAY and e.name != name]
        self._shelf.remove(stray)

    def _remove(self, names: Sequence[str], parts: _Parts) -> None:
        self._shelf.remove(names)
        self._shelf.remove([name + END for name in names if name in parts.ended])


def _until(names: Iterable[str], parts: _Parts, now: float) -> dict[str, float]:
    """Return until when it is to be remembered that these parts are folded."""
    return {name: now + (GRACE if name in parts.ended else STRAY) for name in names}
