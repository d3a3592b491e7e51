"""Statistics in stores that can't add: each process writes its own file, and readers add them up.

::

    stats/part-5e1d…               the counts of one process for a while
    stats/part-5e1d….end           marks that part as complete
    stats/fold-0000000042-9c2f…    the sum of complete parts, and their names

**A part** has one writer, which rewrites it at most once per interval for up to an hour, and then
starts another part. A part is complete once its writer marks it, or once the writer hasn't written
for two hours by the store's clock because it was killed.

**Folding** reads the last fold and the complete parts, and writes a new fold that names those
parts. A compare-and-swap then makes it the *head*. Readers skip the parts that the head names, so a
part is counted exactly once at any time: by itself until the swap, and as part of the head
afterwards. A process that dies in between leaves a file that isn't counted. If two processes fold
at the same time, one loses the swap without effect. Named parts are deleted later, when no process
reads an older head anymore.

**Reading** reads the parts first and then the head, which includes parts deleted in the meantime.

Without pointers (fsspec) there is no swap. The head is the fold with the highest number; in a tie,
the first by name. If two processes fold at the same time, the loser does no harm: it deletes named
parts only after ten minutes, and abandons a fold that it can't write within a minute.

**Resetting** is also a fold: it names all complete parts, and subtracts the current counts of the
other parts, because their writers will write them again.

Unreadable files (truncated, damaged, or from a later version) are skipped and logged.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from offload.errors import StoreUnavailable
from offload.stores.capabilities import SmallFile, SmallFiles
from offload.stores.processes import PerProcess
from offload.stores.protocols import PointerStore
from offload.stores.sums import SPANS, Amounts, TimedSums

logger = logging.getLogger(__name__)

_HEAD = "stats/fold"  # the pointer to the head

# -- names

END = ".end"
"""Suffix of the file that marks a part as complete."""

_PART = re.compile(r"part-[0-9a-f]{32}", re.ASCII)
_FOLD = re.compile(r"fold-([0-9]{10})-[0-9a-f]{32}", re.ASCII)


def new_part() -> str:
    return f"part-{os.urandom(16).hex()}"


def new_fold(old: str | None) -> str:
    """Return a name for the fold after *old*."""
    match = _FOLD.fullmatch(old or "")
    number = int(match[1]) + 1 if match else 1
    return f"fold-{number:010}-{os.urandom(16).hex()}"


def is_part(name: str) -> bool:
    return _PART.fullmatch(name) is not None


def is_fold(name: str) -> bool:
    return _FOLD.fullmatch(name) is not None


# -- format

_MAGIC = b"offload statistics "
_VERSION = b"1"
_MOST = 256 << 20  # plain bytes
_LARGEST = 1 << 63
_DAMAGED = (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError)


class Unreadable(ValueError):
    """The file isn't a snapshot, or is damaged."""


class FromLater(ValueError):
    """The file was written by a later version."""


@dataclass
class Snapshot:
    """A part or a fold.

    Attributes:
        sums: the counts.
        covers: names of the parts included, with the time until which to remember them, in seconds
            since 1970.
    """

    sums: TimedSums = field(default_factory=TimedSums)
    covers: dict[str, float] = field(default_factory=dict)


def write_snapshot(snapshot: Snapshot) -> bytes:
    content = {
        "total": snapshot.sums.total,
        "series": snapshot.sums.series,
        "covers": snapshot.covers,
    }
    plain = json.dumps(content, separators=(",", ":")).encode()
    return b"%b%b\n%b" % (_MAGIC, _VERSION, zlib.compress(plain, 1))


def read_snapshot(written: bytes) -> Snapshot:
    """Parse a snapshot; raises Unreadable or FromLater."""
    line, _, rest = written.partition(b"\n")
    version = line.removeprefix(_MAGIC)
    if not line.startswith(_MAGIC) or not version.isdigit():
        raise Unreadable("not a snapshot")
    if version != _VERSION:
        raise FromLater(f"written in format version {int(version[:9])}")
    try:
        content = json.loads(_plain(rest))
        return _snapshot(content)
    except (*_DAMAGED, zlib.error) as exc:
        raise Unreadable(f"damaged ({type(exc).__name__})") from exc


def _plain(compressed: bytes) -> bytes:
    inflater = zlib.decompressobj()
    plain = inflater.decompress(compressed, _MOST)
    if not inflater.eof:
        raise ValueError("too long, or truncated")
    return plain


def _snapshot(content: Any) -> Snapshot:
    snapshot = Snapshot()
    snapshot.sums.total = _amounts(content["total"])
    for span in SPANS:
        snapshot.sums.series[span] = {
            int(begin): _amounts(amounts) for begin, amounts in content["series"][span].items()
        }
    snapshot.covers = {str(name): float(until) for name, until in content["covers"].items()}
    return snapshot


def _amounts(content: Any) -> Amounts:
    amounts: Amounts = dict(content)
    if not all(type(each) is int and -_LARGEST < each < _LARGEST for each in amounts.values()):
        raise ValueError("not whole numbers")
    return amounts


# -- the head


class Head(Protocol):
    """Finds and replaces the current fold."""

    def find(self) -> str | None:
        """Return its name; None if there is none yet."""

    def swap(self, old: str | None, new: str) -> bool:
        """Replace *old* by *new*, which must be written; return whether *new* is now the head."""


class PointerHead:
    """The head is the fold that a pointer names."""

    def __init__(self, pointers: PointerStore) -> None:
        self._pointers = pointers

    def find(self) -> str | None:
        return _named(self._pointers.read(_HEAD))

    def swap(self, old: str | None, new: str) -> bool:
        current = self._pointers.read(_HEAD)
        if _named(current) != old:
            return False
        return self._pointers.swap(_HEAD, current, new.encode())


def _named(value: bytes | None) -> str | None:
    name = (value or b"").decode("ascii", "replace")
    return name if is_fold(name) else None  # not a fold: something else wrote the pointer


class NumberedHead:
    """The head is the fold with the highest number; in a tie, the first by name."""

    def __init__(self, files: SmallFiles) -> None:
        self._files = files

    def find(self) -> str | None:
        folds = [entry.name for entry in self._files.entries() if is_fold(entry.name)]
        number = max((name.rpartition("-")[0] for name in folds), default="")
        return min((name for name in folds if name.startswith(f"{number}-")), default=None)

    def swap(self, old: str | None, new: str) -> bool:  # noqa: ARG002 (the number implies it)
        return self.find() == new


# -- reading

_TURNS = 5
_AT_ONCE = 1000

Found = Snapshot | Unreadable | FromLater


class Reader:
    """Reads parts and the head, and caches those that don't change."""

    def __init__(self, files: SmallFiles, head: Head) -> None:
        self._files = files
        self._head = head
        self._kept: PerProcess[dict[str, tuple[str, Snapshot]]] = PerProcess(dict)
        self._kept_head: PerProcess[dict[str, Snapshot]] = PerProcess(dict)

    def sum(self) -> TimedSums:
        """Return the sums of all processes."""
        entries = [entry for entry in self._files.entries() if is_part(entry.name)]
        parts = self._cached_parts(entries)
        _, head = self.head()  # after the parts: the head includes those deleted meanwhile
        sums = TimedSums()
        covers: Collection[str] = ()
        if isinstance(head, Snapshot):
            sums.add(head.sums)
            covers = head.covers
        for name, snapshot in parts.items():
            if name not in covers:
                sums.add(snapshot.sums)
        sums.prune(self._files.now())
        return sums

    def parts(self, names: Sequence[str]) -> dict[str, Found]:
        """Return the content of parts, without those deleted meanwhile."""
        found = {}
        for at in range(0, len(names), _AT_ONCE):
            some = names[at : at + _AT_ONCE]
            for name, content in zip(some, self._files.read(some), strict=True):
                if content is not None:
                    found[name] = self._read(name, content)
        return found

    def _cached_parts(self, entries: Sequence[SmallFile]) -> dict[str, Snapshot]:
        """Return the readable parts, reading only those that changed."""
        kept = self._kept.get()
        found: dict[str, Snapshot] = {}
        for entry in entries:
            tag, snapshot = kept.get(entry.name, ("", None))
            if snapshot is not None and tag == entry.tag:
                found[entry.name] = snapshot
        rest = self.parts([entry.name for entry in entries if entry.name not in found])
        found.update({name: each for name, each in rest.items() if isinstance(each, Snapshot)})
        tags = {entry.name: entry.tag for entry in entries}
        kept.clear()
        kept.update({name: (tags[name], each) for name, each in found.items()})
        return found

    def head(self) -> tuple[str | None, Found | None]:
        """Return the head's name and content; None if there is none. Raises StoreUnavailable."""
        kept = self._kept_head.get()
        for _ in range(_TURNS):
            name = self._head.find()
            if name is None or name in kept:
                return name, kept.get(name or "")
            (content,) = self._files.read([name])
            if content is not None:
                found = self._read(name, content)
                kept.clear()
                if isinstance(found, Snapshot):
                    kept[name] = found
                return name, found
        if name == self._head.find():
            logger.warning("%s: statistics are lost: %s is missing", self._files.url, name)
            return name, Unreadable("it is missing")
        raise StoreUnavailable(
            f"statistics in {self._files.url} changed during each of {_TURNS} reads",
            store=self._files.url,
        )

    def _read(self, name: str, content: bytes) -> Found:
        try:
            return read_snapshot(content)
        except (FromLater, Unreadable) as exc:
            logger.warning("%s: statistics skip stats/%s: %s", self._files.url, name, exc)
            return exc
