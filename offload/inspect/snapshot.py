"""Snapshots of a store's blobs in little memory, so that many pages can share one scan."""

from __future__ import annotations

import math
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from struct import Struct
from typing import Any

from offload.content.holds import holder
from offload.digest import Digest
from offload.inspect.blobs import Row, rows, tracked_holds
from offload.stores.protocols import Store

LIMIT = 200_000
"""Maximum number of blobs in a snapshot, which takes about 15 MB then."""
SIZES = (1e3, 10e3, 100e3, 1e6, 2e6, 5e6, 10e6, math.inf)
"""Upper bounds of size classes, in stored bytes."""
TIMES = (60.0, 3600.0, 6 * 3600.0, 86400.0, 7 * 86400.0, 30 * 86400.0, math.inf)
"""Upper bounds of expiry classes, in seconds."""

_WIDTH = 32  # bytes of a digest
_RECORD = Struct(f">{_WIDTH}sqdi")
_CACHED = 8  # queries whose results are cached
_UNKNOWN = -1  # stands for an unknown number of holders
_TOGETHER = 5000  # blobs in one query for holders
_DESCENDING = {"size": True, "expiry": False, "holders": True, "digest": False}


@dataclass(frozen=True)
class Query:
    """Filters and sort order for blobs.

    Attributes:
        sort: ``size``, ``expiry``, ``holders``, or ``digest``.
        descending: the direction; None uses the usual direction of *sort*.
        prefix: prefix of digests: ``b3:`` and hexadecimal digits.
        larger_than: only blobs with more stored bytes.
        held: only blobs with holders (True) or without (False); None selects all.
        among: only blobs at these indexes of the snapshot, as `held_by` returns them.
    """

    sort: str = "size"
    descending: bool | None = None
    prefix: str = ""
    larger_than: int | None = None
    held: bool | None = None
    among: Sequence[int] | None = None

    @property
    def is_descending(self) -> bool:
        return _DESCENDING[self.sort] if self.descending is None else self.descending


@dataclass(frozen=True)
class Selection:
    """One page of selected blobs.

    Attributes:
        rows: blobs on this page; times to live are as of the snapshot.
        count: number of blobs on all pages.
        size: stored bytes on all pages.
    """

    rows: list[Row]
    count: int
    size: int


@dataclass(frozen=True)
class Totals:
    """Totals of a snapshot.

    Attributes:
        count: number of blobs.
        size, largest: stored bytes of all blobs, and of the largest.
        held, held_size: number and stored bytes of blobs with holders; None if the store doesn't
            track holds.
    """

    count: int
    size: int
    largest: int
    held: int | None
    held_size: int | None


@dataclass(frozen=True)
class Bucket:
    """One bucket of a histogram.

    Attributes:
        below: upper bound, in bytes or seconds; the lower bound is that of the previous bucket.
        count, size: number and stored bytes of the blobs in it.
    """

    below: float
    count: int
    size: int


class Snapshot:
    """Blobs of a store at one time, sorted by digest; see `take_snapshot`.

    Attributes:
        more: whether the store has further blobs.
        knows_holders: whether the store tracks holds.
        by_size: histogram of sizes, with the bounds in `SIZES`.
        by_expiry: histogram of times to live, with the bounds in `TIMES`; the last bucket includes
            blobs that never expire.
    """

    def __init__(self, records: list[bytes], *, more: bool, knows_holders: bool) -> None:
        self.more = more
        self.knows_holders = knows_holders
        self._digests = b"".join(record[:_WIDTH] for record in records)
        self._sizes = array("q")
        self._ttls = array("d")
        self._holders = array("i")
        for record in records:
            _, size, ttl, holders = _RECORD.unpack(record)
            self._sizes.append(size)
            self._ttls.append(ttl)
            self._holders.append(holders)
        self._orders: dict[tuple[str, bool], Sequence[int]] = {}
        self._lock = threading.Lock()  # a forked child takes a snapshot of its own
        self._selections: dict[Query, tuple[Sequence[int], int]] = {}
        self.totals = self._totals()
        self.by_size = _buckets(SIZES, self._sizes, self._sizes)
        self.by_expiry = _buckets(TIMES, self._ttls, self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> Row:
        """Return the blob at an index; 0 has the first digest."""
        holders = self._holders[index]
        return Row(
            self.digest(index),
            self._sizes[index],
            self._ttls[index],
            None if holders == _UNKNOWN else holders,
        )

    def digest(self, index: int) -> Digest:
        return Digest(f"b3:{self._digest(index).hex()}")

    def ttl(self, index: int) -> float:
        """Return the seconds from the snapshot until a blob expires."""
        return self._ttls[index]

    def holders(self, index: int) -> int:
        """Return a blob's number of holders; 0 also if the store doesn't track holds."""
        return max(self._holders[index], 0)

    def common(self, other: Snapshot) -> Iterator[tuple[int, int]]:
        """Yield the indexes, here and in *other*, of the blobs in both snapshots."""
        at, length = 0, len(other)
        for index in range(len(self)):
            digest = self._digest(index)
            while at < length and other._digest(at) < digest:
                at += 1
            if at < length and other._digest(at) == digest:
                yield index, at

    def held(self) -> Iterator[int]:
        """Yield the indexes of blobs with holders."""
        return (index for index, count in enumerate(self._holders) if count > 0)

    def _totals(self) -> Totals:
        held = list(self.held()) if self.knows_holders else None
        return Totals(
            len(self),
            sum(self._sizes),
            max(self._sizes, default=0),
            None if held is None else len(held),
            None if held is None else sum(map(self._sizes.__getitem__, held)),
        )

    def select(self, query: Query, offset: int = 0, limit: int = 50) -> Selection:
        """Return up to *limit* matching blobs, skipping the first *offset*."""
        indexes, size = self._selected(query)
        rows = [self[index] for index in indexes[offset : offset + limit]]
        return Selection(rows, len(indexes), size)

    def _selected(self, query: Query) -> tuple[Sequence[int], int]:
        """Return the indexes of matching blobs, and their total bytes."""
        if query.among is not None:
            indexes = self._indexes(query)
            return indexes, sum(map(self._sizes.__getitem__, indexes))
        with self._lock:
            found = self._selections.get(query)
            if found is None:
                indexes = self._indexes(query)
                everything = len(indexes) == len(self)
                size = (
                    self.totals.size if everything else sum(map(self._sizes.__getitem__, indexes))
                )
                while len(self._selections) >= _CACHED:
                    del self._selections[next(iter(self._selections))]
                found = self._selections[query] = indexes, size
            return found

    def _indexes(self, query: Query) -> Sequence[int]:
        indexes = self._in_order(query)
        sizes, holders = self._sizes, self._holders
        if query.larger_than is not None:
            least = query.larger_than
            indexes = array("I", [index for index in indexes if sizes[index] > least])
        if query.held is not None:
            wanted = query.held
            indexes = array("I", [index for index in indexes if (holders[index] > 0) is wanted])
        return indexes

    def _in_order(self, query: Query) -> Sequence[int]:
        span = self._span(query.prefix)
        down = query.is_descending
        if query.among is not None:
            return self._sorted([p for p in query.among if p in span], query.sort, down)
        if len(span) < len(self):
            return self._sorted(span, query.sort, down)
        order = self._orders.get((query.sort, down))
        if order is None:
            order = self._orders[query.sort, down] = self._sorted(span, query.sort, down)
        return order

    def _sorted(self, indexes: Sequence[int], sort: str, down: bool) -> Sequence[int]:
        keys: dict[str, Callable[[int], Any]] = {
            "size": self._sizes.__getitem__,
            "expiry": self._ttls.__getitem__,
            "holders": self._holders.__getitem__,
            "digest": int,
        }
        # Equal keys stay in the order of their digests.
        return array("I", sorted(indexes, key=keys[sort], reverse=down))

    def _span(self, prefix: str) -> range:
        """Return the indexes of digests with this prefix."""
        digits = prefix.removeprefix("b3:")
        if not digits:
            return range(len(self))
        first, last = (bytes.fromhex(digits.ljust(2 * _WIDTH, fill)) for fill in "0f")
        indexes = range(len(self))
        return range(
            bisect_left(indexes, first, key=self._digest),
            bisect_right(indexes, last, key=self._digest),
        )

    def _digest(self, index: int) -> bytes:
        return self._digests[index * _WIDTH : (index + 1) * _WIDTH]


def take_snapshot(store: Store, limit: int = LIMIT) -> Snapshot:
    """Scan the blobs of a store, at most *limit*.

    Raises ConfigurationError if the store doesn't support inspection, and StoreUnavailable.
    """
    found = rows(store)
    records = [_packed(row) for row in islice(found, limit)]
    more = next(found, None) is not None
    records.sort()
    return Snapshot(records, more=more, knows_holders=store.blobs.tracks_holds)


def held_by(store: Store, snapshot: Snapshot, name: str) -> list[int]:
    """Return the indexes in *snapshot* of blobs now held by a task, a result, or a pin.

    Queries every blob that had holders in the snapshot, which takes seconds for 100,000. Holders
    name a task's ID, so you can't search by the task's name.

    Args:
        name: a task's ID, a pin's name, or a holder as `offload inspect` shows it.

    Raises ConfigurationError if the store doesn't track holds, StoreUnavailable.
    """
    tracking = tracked_holds(store, required=True)
    if tracking is None or not name:
        return []
    called = holder("", name)[1:]  # a holder contains a hash of a long ID
    indexes = snapshot.held()
    found: list[int] = []
    while some := list(islice(indexes, _TOGETHER)):
        digests = [snapshot.digest(index) for index in some]
        held = tracking.held_by(digests, called)
        found += [index for index, digest in zip(some, digests, strict=True) if digest in held]
    return found


def _packed(row: Row) -> bytes:
    holders = _UNKNOWN if row.holders is None else row.holders
    return _RECORD.pack(bytes.fromhex(row.digest[3:]), row.size, row.ttl, holders)


def _buckets(edges: Sequence[float], values: Sequence[float], sizes: Sequence[int]) -> list[Bucket]:
    counts, totals = [0] * len(edges), [0] * len(edges)
    for value, size in zip(values, sizes, strict=True):
        at = min(bisect_right(edges, value), len(edges) - 1)
        counts[at] += 1
        totals[at] += size
    return [Bucket(*each) for each in zip(edges, counts, totals, strict=True)]
