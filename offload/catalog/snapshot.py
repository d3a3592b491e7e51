"""What a store had at one moment, in few bytes: many pages are shown of one look at all blobs."""

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

from offload.catalog.listing import Row, rows
from offload.digest import Digest
from offload.stores.protocols import Store

__all__ = ("LIMIT", "SIZES", "TIMES", "Bucket", "Chosen", "Query", "Snapshot", "Totals", "take")

LIMIT = 200_000
"""Blobs of which a snapshot knows: about 15 MB."""
SIZES = (1e3, 10e3, 100e3, 1e6, 2e6, 5e6, 10e6, math.inf)
"""Stored bytes that divide blobs by size."""
TIMES = (60.0, 3600.0, 6 * 3600.0, 86400.0, 7 * 86400.0, 30 * 86400.0, math.inf)
"""Seconds that divide blobs by how long they live."""

_WIDTH = 32  # bytes of a digest
_RECORD = Struct(f">{_WIDTH}sqdi")
_CHOICES = 8  # queries whose answers are kept
_UNKNOWN = -1  # holders
_DESCENDING = {"size": True, "expiry": False, "holders": True, "digest": False}


@dataclass(frozen=True)
class Query:
    """Which blobs are shown, and in which order.

    Attributes:
        sort: ``size``, ``expiry``, ``holders`` or ``digest``.
        descending: None for the direction that is usual for it.
        begin: how their digests begin: ``b3:`` and hexadecimal digits.
        larger_than: stored bytes.
        held: only those that somebody holds, or nobody; all if None.
        among: only those at these places in the snapshot, as `held_by` returns them.
    """

    sort: str = "size"
    descending: bool | None = None
    begin: str = ""
    larger_than: int | None = None
    held: bool | None = None
    among: Sequence[int] | None = None

    @property
    def is_descending(self) -> bool:
        return _DESCENDING[self.sort] if self.descending is None else self.descending


@dataclass(frozen=True)
class Chosen:
    """One page of blobs.

    Attributes:
        rows: those of the page, with what they had still to live when the snapshot was taken.
        count: how many there are on all pages.
        size: stored bytes of those.
    """

    rows: list[Row]
    count: int
    size: int


@dataclass(frozen=True)
class Totals:
    """All blobs of a snapshot.

    Attributes:
        size: stored bytes of all; *largest* those of the largest.
        held: how many somebody holds, and *held_size* their bytes; None where that is not known.
    """

    count: int
    size: int
    largest: int
    held: int | None
    held_size: int | None


@dataclass(frozen=True)
class Bucket:
    """Blobs of up to (and without) some bytes or seconds, over those of the one before."""

    below: float
    count: int
    size: int


class Snapshot:
    """See the module; made by `take`. The rows are in the order of their digests.

    Attributes:
        more: whether the store has more blobs than these.
        knows_holders: whether the store keeps account of them.
        totals: of all of them.
        by_size: how many there are of which size, divided by `SIZES`.
        by_expiry: how many end when, divided by `TIMES`; what never ends is in the last.
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
        self._choices: dict[Query, tuple[Sequence[int], int]] = {}
        self.totals = self._totals()
        self.by_size = _buckets(SIZES, self._sizes, self._sizes)
        self.by_expiry = _buckets(TIMES, self._ttls, self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, place: int) -> Row:
        """Return the row at a place: 0 has the first digest."""
        holders = self._holders[place]
        return Row(
            self.digest(place),
            self._sizes[place],
            self._ttls[place],
            None if holders == _UNKNOWN else holders,
        )

    def digest(self, place: int) -> Digest:
        return Digest(f"b3:{self._digest(place).hex()}")

    def held(self) -> Iterator[int]:
        """Yield the places of blobs that somebody held."""
        return (place for place, count in enumerate(self._holders) if count > 0)

    def _totals(self) -> Totals:
        held = list(self.held()) if self.knows_holders else None
        return Totals(
            len(self),
            sum(self._sizes),
            max(self._sizes, default=0),
            None if held is None else len(held),
            None if held is None else sum(map(self._sizes.__getitem__, held)),
        )

    def choose(self, query: Query, offset: int = 0, limit: int = 50) -> Chosen:
        """Return the blobs from number *offset* on, up to *limit*, of those asked for."""
        places, size = self._chosen(query)
        rows = [self[place] for place in places[offset : offset + limit]]
        return Chosen(rows, len(places), size)

    def _chosen(self, query: Query) -> tuple[Sequence[int], int]:
        """Return the places of what is asked for, and its bytes: pages are asked for again."""
        if query.among is not None:
            places = self._places(query)
            return places, sum(map(self._sizes.__getitem__, places))
        with self._lock:
            found = self._choices.get(query)
            if found is None:
                places = self._places(query)
                everything = len(places) == len(self)
                size = self.totals.size if everything else sum(map(self._sizes.__getitem__, places))
                while len(self._choices) >= _CHOICES:
                    del self._choices[next(iter(self._choices))]
                found = self._choices[query] = places, size
            return found

    def _places(self, query: Query) -> Sequence[int]:
        places = self._in_order(query)
        sizes, holders = self._sizes, self._holders
        if query.larger_than is not None:
            least = query.larger_than
            places = array("I", [place for place in places if sizes[place] > least])
        if query.held is not None:
            wanted = query.held
            places = array("I", [place for place in places if (holders[place] > 0) is wanted])
        return places

    def _in_order(self, query: Query) -> Sequence[int]:
        span = self._span(query.begin)
        down = query.is_descending
        if query.among is not None:
            return self._sorted([p for p in query.among if p in span], query.sort, down)
        if len(span) < len(self):
            return self._sorted(span, query.sort, down)
        order = self._orders.get((query.sort, down))
        if order is None:
            order = self._orders[query.sort, down] = self._sorted(span, query.sort, down)
        return order

    def _sorted(self, places: Sequence[int], sort: str, down: bool) -> Sequence[int]:
        keys: dict[str, Callable[[int], Any]] = {
            "size": self._sizes.__getitem__,
            "expiry": self._ttls.__getitem__,
            "holders": self._holders.__getitem__,
            "digest": int,
        }
        # Where keys are equal the order of the digests stays.
        return array("I", sorted(places, key=keys[sort], reverse=down))

    def _span(self, begin: str) -> range:
        """Return the places of digests that begin so."""
        digits = begin.removeprefix("b3:")
        if not digits:
            return range(len(self))
        first, last = (bytes.fromhex(digits.ljust(2 * _WIDTH, fill)) for fill in "0f")
        places = range(len(self))
        return range(
            bisect_left(places, first, key=self._digest),
            bisect_right(places, last, key=self._digest),
        )

    def _digest(self, place: int) -> bytes:
        return self._digests[place * _WIDTH : (place + 1) * _WIDTH]


def take(store: Store, limit: int = LIMIT) -> Snapshot:
    """Look at all blobs of a store, or *limit* of them.

    Raises StoreUnavailable.
    """
    found = rows(store)
    records = [_packed(row) for row in islice(found, limit)]
    more = next(found, None) is not None
    records.sort()
    return Snapshot(records, more=more, knows_holders=store.blobs.tracks_holds)


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
