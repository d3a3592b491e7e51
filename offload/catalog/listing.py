"""The blobs of a store as a list: chosen, sorted, and looked at for what they are."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from offload.catalog.blobs import BlobSummary, summarize_blobs
from offload.catalog.preview import type_of
from offload.digest import Digest
from offload.errors import ConfigurationError
from offload.stores.capabilities import HoldTracking, hold_tracking_of
from offload.stores.protocols import BlobInfo, Store
from offload.text import human_size

__all__ = ("PAGE", "SORTS", "Listed", "Row", "account_of", "listed", "ordered", "rows", "told_kind")

PAGE = 500  # blobs that are looked at together


@dataclass(frozen=True)
class Row:
    """What is known of a blob. (Slots, as of many at once a few are kept.)

    Attributes:
        size: stored bytes.
        ttl: seconds it has still to live.
        holders: how many hold it; None where no account is kept.
    """

    __slots__ = ("digest", "holders", "size", "ttl")
    digest: Digest
    size: int
    ttl: float
    holders: int | None


SORTS: Mapping[str, Callable[[Row], tuple[float, str]]] = {
    "size": lambda row: (-row.size, row.digest),
    "expiry": lambda row: (row.ttl, row.digest),
    "holders": lambda row: (-(row.holders or 0), row.digest),
}
"""Largest first, first to end first, most needed first."""


@dataclass(frozen=True)
class Listed:
    """A blob in a list.

    Attributes:
        seen: what it seems to be; None if it was not looked at, or is not there any more.
        shared: in how many values it is; None if that was not counted, or it is no chunk.
    """

    row: Row
    seen: BlobSummary | None
    shared: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what programs are told of it."""
        row, seen = self.row, self.seen
        root = seen.root if seen is not None else None
        return {
            "digest": row.digest,
            "bytes": row.size,
            "ttl": row.ttl if math.isfinite(row.ttl) else None,
            "age": seen.seen.age if seen is not None else None,
            "holders": row.holders,
            "shared": self.shared,
            "kind": None if seen is None or not seen.known else "chunk" if root is None else "root",
            "type": None if seen is None or root is None else _type(seen),
            "serializer": root and root.serializer,
            "value_bytes": root and root.size,
            "chunks": None if root is None else len(root.chunks),
        }


def account_of(store: Store, *, needed: bool) -> HoldTracking | None:
    """Return the account of who holds what, None where none is kept.

    Raises ConfigurationError for that if it is *needed*.
    """
    account = hold_tracking_of(store)
    if account is None and needed:
        raise ConfigurationError(
            f"{store.url} keeps no account of who needs what: Redis does, also as the first of "
            "several stores",
            store=store.url,
        )
    return account


def rows(
    store: Store, *, larger_than: int | None = None, held: bool | None = None
) -> Iterator[Row]:
    """Yield what is in a store, in no order.

    Args:
        larger_than: only blobs of more stored bytes.
        held: only those that somebody holds, or nobody; raises ConfigurationError where no account
            is kept.
    """
    account = account_of(store, needed=held is not None)
    return (
        row
        for row in _rows(store, account)
        if (larger_than is None or row.size > larger_than)
        and (held is None or bool(row.holders) is held)
    )


def _rows(store: Store, account: HoldTracking | None) -> Iterator[Row]:
    infos: Iterator[BlobInfo] = store.blobs.scan()
    while some := list(islice(infos, PAGE)):
        counts: Iterable[int | None] = [None] * len(some)
        if account is not None:
            counts = account.count_holders([info.digest for info in some])
        for info, count in zip(some, counts, strict=True):
            yield Row(info.digest, info.size, info.ttl, count)


def ordered(found: Iterable[Row], sort: str | None, limit: int | None) -> Iterator[Row]:
    """Return the first *limit* rows in the order *sort*, one of `SORTS`; None leaves it."""
    if sort is None:
        return islice(found, limit)
    key = SORTS[sort]
    return iter(sorted(found, key=key) if limit is None else heapq.nsmallest(limit, found, key))


def listed(
    store: Store,
    found: Iterable[Row],
    shared: Callable[[Digest], int] | None = None,
    *,
    quick: bool = False,
) -> Iterator[Listed]:
    """Look at blobs for what they are, some hundred at a time; not if *quick*.

    Args:
        shared: tells in how many values a chunk is.
    """
    rest = iter(found)
    while some := list(islice(rest, PAGE)):
        seen: Iterable[BlobSummary | None] = [None] * len(some)
        if not quick:
            seen = summarize_blobs(store, [row.digest for row in some])
        for row, each in zip(some, seen, strict=True):
            is_root = each is not None and each.root is not None
            times = None if shared is None or is_root else shared(row.digest)
            yield Listed(row, each, times)


def told_kind(seen: BlobSummary | None) -> str:
    """Return what people are told of what a blob is: ``str (raw, 10.0 kB)``, ``chunk``; ``-`` if it
    was not looked at.
    """
    if seen is None:
        return "-"
    root = seen.root
    if root is None:
        return "chunk" if seen.known else "?"
    chunks = f", {len(root.chunks)} chunks" if root.chunks else ""
    return f"{_type(seen)} ({root.serializer[:40]}, {human_size(root.size)}{chunks})"


def _type(seen: BlobSummary) -> str:
    root = seen.root
    return "" if root is None else type_of(root.serializer, root.head, root.body)
