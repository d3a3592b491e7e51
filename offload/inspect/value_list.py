"""List the values of a store, with type and size, by finding the blobs that are their roots.

Roots are recognized by their first bytes. A blob's content never changes, so these are read once
per blob: a new list takes over what the previous one knows.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from offload.inspect.blobs import Row, describe_type
from offload.inspect.content import summarize_blobs
from offload.inspect.snapshot import Snapshot
from offload.stores.protocols import Store
from offload.text import human_number

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher

SORTS: Mapping[str, bool] = {"size": True, "expiry": False, "holders": True, "type": False}
"""Sort keys, and whether the usual direction of each is descending."""

_AT_ONCE = 512  # blobs whose first bytes are read in one request
_TYPES = 1000  # maximum number of distinct types; further ones are listed as "other"
_LONGEST = 60  # characters of a type's name
_CACHED = 8  # queries whose results are cached
_UNREAD, _CHUNK, _FIRST = 0, 1, 2  # kinds of blobs; _FIRST + n is a value of the nth type


@dataclass(frozen=True)
class ValueQuery:
    """Filters and sort order for values.

    Attributes:
        sort: one of `SORTS`.
        descending: the direction; None uses the usual direction of *sort*.
        type: part of the type's name, ignoring case.
        larger_than: only values with more serialized bytes.
        held: only values with holders (True) or without (False); None selects all.
        among: only values whose roots have these indexes in the snapshot.
    """

    sort: str = "size"
    descending: bool | None = None
    type: str = ""
    larger_than: int | None = None
    held: bool | None = None
    among: Sequence[int] | None = None

    @property
    def is_descending(self) -> bool:
        return SORTS[self.sort] if self.descending is None else self.descending


@dataclass(frozen=True)
class Value:
    """A value in a store.

    Attributes:
        row: its root blob.
        type: its probable type.
        size: serialized bytes.
    """

    row: Row
    type: str
    size: int


class ValueList:
    """The values among the blobs of a snapshot.

    Attributes:
        snapshot: the snapshot, with all blobs.
        count, size: number of known values, and their serialized bytes.
        unread: number of blobs not read yet, some of which may be values.
        by_type: number of values by type, most frequent first.
    """

    def __init__(
        self, snapshot: Snapshot, kinds: array[int], sizes: array[int], names: Sequence[str]
    ) -> None:
        self.snapshot = snapshot
        self._kinds = kinds
        self._sizes = sizes
        self._names = names
        self._lock = threading.Lock()  # a forked child makes a list of its own
        self._selections: dict[ValueQuery, Sequence[int]] = {}
        counts = Counter(kinds)
        self.unread = counts.pop(_UNREAD, 0)
        counts.pop(_CHUNK, 0)
        self.count = sum(counts.values())
        self.size = sum(sizes)
        self.by_type = {names[kind - _FIRST]: n for kind, n in counts.most_common()}

    def select(self, query: ValueQuery, offset: int, limit: int) -> tuple[list[Value], int]:
        """Return up to *limit* matching values, skipping *offset*, and the number of all."""
        indexes = self._selected(query)
        found = [
            Value(self.snapshot[at], self._names[self._kinds[at] - _FIRST], self._sizes[at])
            for at in indexes[offset : offset + limit]
        ]
        return found, len(indexes)

    def _selected(self, query: ValueQuery) -> Sequence[int]:
        if query.among is not None:
            return self._indexes(query)
        with self._lock:
            found = self._selections.get(query)
            if found is None:
                found = self._indexes(query)
                while len(self._selections) >= _CACHED:
                    del self._selections[next(iter(self._selections))]
                self._selections[query] = found
            return found

    def _indexes(self, query: ValueQuery) -> Sequence[int]:
        wanted = query.type.casefold()
        shown = [wanted in name.casefold() for name in self._names]
        kinds, sizes = self._kinds, self._sizes
        places: Iterable[int] = range(len(kinds)) if query.among is None else query.among
        found = [at for at in places if kinds[at] >= _FIRST and shown[kinds[at] - _FIRST]]
        if query.larger_than is not None:
            found = [at for at in found if sizes[at] > query.larger_than]
        if query.held is not None:
            found = [at for at in found if bool(self.snapshot.holders(at)) is query.held]
        keys: dict[str, Callable[[int], object]] = {
            "size": sizes.__getitem__,
            "expiry": self.snapshot.ttl,
            "holders": self.snapshot.holders,
            "type": lambda at: self._names[kinds[at] - _FIRST],
        }
        return array("I", sorted(found, key=keys[query.sort], reverse=query.is_descending))  # type: ignore[arg-type]

    def known(self) -> tuple[Snapshot, array[int], array[int], Sequence[str]]:
        """Return the data that the next list takes over."""
        return self.snapshot, self._kinds, self._sizes, self._names


def list_values(
    store: Store,
    snapshot: Snapshot,
    before: ValueList | None = None,
    *,
    seconds: float = 10.0,
    cipher: BlobCipher | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ValueList:
    """Return the values among the blobs of *snapshot*.

    Reads a few KiB of each blob that *before* doesn't know, for about *seconds* at most; the next
    call continues. Raises StoreUnavailable.

    Args:
        before: the previous list.
        seconds: time limit.
        cipher: decrypts blobs; None without encryption.
        clock: returns monotonic seconds.
    """
    end = clock() + seconds
    kinds, sizes = array("H", bytes(2 * len(snapshot))), array("q", bytes(8 * len(snapshot)))
    names: list[str] = []
    if before is not None:
        old, old_kinds, old_sizes, old_names = before.known()
        names += old_names
        for new_at, old_at in snapshot.common(old):
            kinds[new_at], sizes[new_at] = old_kinds[old_at], old_sizes[old_at]
    places = {name: at for at, name in enumerate(names)}
    unread = (at for at, kind in enumerate(kinds) if kind == _UNREAD)
    while clock() < end and (some := list(islice(unread, _AT_ONCE))):
        digests = [snapshot.digest(at) for at in some]
        for at, seen in zip(some, summarize_blobs(store, digests, cipher), strict=True):
            if seen is None or seen.root is None:
                kinds[at] = _CHUNK
                continue
            name = describe_type(seen)[:_LONGEST]
            if name not in places and len(places) >= _TYPES:
                name = "other"
            place = places.setdefault(name, len(places))
            if place == len(names):
                names.append(name)
            kinds[at], sizes[at] = _FIRST + place, max(seen.root.size, 0)
    return ValueList(snapshot, kinds, sizes, names)


_KINDS = {
    "task": "task",
    "result": "result",
    "memo": "memo result",
    "progress": "progress report",
    "put": "publisher",
}


def describe_holders(holders: Iterable[str]) -> str:
    """Summarize holders, such as ``3 tasks, 1 result, pin model``; "" if there are none."""
    counts: Counter[str] = Counter()
    named: list[str] = []
    for each in holders:
        kind, _, name = each.partition(":")
        if kind == "pin":
            named.append(f"pin {name.rpartition('+')[0] or name}")
        else:
            counts[_KINDS.get(kind, "other holder")] += 1
    texts = [f"{human_number(n)} {kind}{'s' if n > 1 else ''}" for kind, n in counts.items()]
    return ", ".join([*texts, *sorted(named)])
