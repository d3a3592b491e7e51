"""List, find, and remove blobs of a store."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from offload.digest import Digest, parse_digest
from offload.errors import BlobMissing, ConfigurationError, InvalidRef
from offload.inspect.content import BlobSummary, summarize_blobs
from offload.inspect.preview import type_of
from offload.stores.capabilities import HoldTracking, blob_inspection_of, hold_tracking_of
from offload.stores.protocols import BlobInfo, Store
from offload.text import UNKNOWN, human_count, human_size

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher

PAGE = 500
"""Number of blobs to read in one request."""

_PREFIX = re.compile(r"(?:b3[:-])?(?P<digits>[0-9a-f]{8,64})…?", re.ASCII)
_PARTIAL = re.compile(r"(?:b3[:-])?(?P<digits>[0-9a-f]{0,64})…?", re.ASCII)
_WHOLE = len("b3:") + 64
_NAMED = 3  # digests to name in an error


@dataclass(frozen=True)
class Row:
    """A blob in a store.

    Attributes:
        size: stored bytes.
        ttl: seconds until it expires; may be infinite.
        holders: number of holders; None if the store doesn't track holds.
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
"""Sort keys by name: largest first, first to expire first, most holders first."""


@dataclass(frozen=True)
class Listed:
    """A blob in a list.

    Attributes:
        row: its size, expiry, and holders.
        seen: summary of its first bytes; None if it wasn't read or no longer exists.
        shared: number of values that contain it; None if not counted, or if it isn't a chunk.
    """

    row: Row
    seen: BlobSummary | None
    shared: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
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
            "type": None if seen is None or root is None else describe_type(seen),
            "serializer": root and root.serializer,
            "value_bytes": root and root.size,
            "chunks": None if root is None else len(root.chunks),
        }


# -- listing


def rows(
    store: Store, *, larger_than: int | None = None, held: bool | None = None
) -> Iterator[Row]:
    """Yield the blobs of a store, in no particular order.

    Args:
        larger_than: yield only blobs with more stored bytes.
        held: yield only blobs with holders (True) or without (False).

    Raises ConfigurationError if *held* is given and the store doesn't track holds, or if the store
    doesn't support inspection; StoreUnavailable.
    """
    tracking = tracked_holds(store, required=held is not None)
    return (
        row
        for row in _rows(store, tracking)
        if (larger_than is None or row.size > larger_than)
        and (held is None or bool(row.holders) is held)
    )


def _rows(store: Store, tracking: HoldTracking | None) -> Iterator[Row]:
    infos: Iterator[BlobInfo] = store.blobs.scan()
    while page := list(islice(infos, PAGE)):
        counts: Iterable[int | None] = [None] * len(page)
        if tracking is not None:
            counts = tracking.count_holders([info.digest for info in page])
        for info, count in zip(page, counts, strict=True):
            yield Row(info.digest, info.size, info.ttl, count)


def ordered(found: Iterable[Row], sort: str | None, limit: int | None) -> Iterator[Row]:
    """Return the first *limit* rows (None: all), sorted by *sort*, one of `SORTS` or None."""
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
    cipher: BlobCipher | None = None,
) -> Iterator[Listed]:
    """Yield each blob with a summary of its first bytes, reading a page at a time.

    Args:
        shared: returns how many values contain a chunk; None doesn't count.
        quick: read nothing, so no blob has a summary.
        cipher: decrypts blobs; None without encryption.
    """
    rest = iter(found)
    while page := list(islice(rest, PAGE)):
        seen: Iterable[BlobSummary | None] = [None] * len(page)
        if not quick:
            seen = summarize_blobs(store, [row.digest for row in page], cipher)
        for row, each in zip(page, seen, strict=True):
            is_root = each is not None and each.root is not None
            count = None if shared is None or is_root else shared(row.digest)
            yield Listed(row, each, count)


def describe_kind(seen: BlobSummary | None) -> str:
    """Describe a blob, such as ``str (raw, 10.0 kB)`` or ``chunk``; ``-`` if it wasn't read."""
    if seen is None:
        return UNKNOWN
    root = seen.root
    if root is None:
        return "chunk" if seen.known else "?"
    chunks = f", {human_count(len(root.chunks), 'chunk')}" if root.chunks else ""
    return f"{describe_type(seen)} ({root.serializer[:40]}, {human_size(root.size)}{chunks})"


def describe_type(seen: BlobSummary) -> str:
    """Return the probable type of a value; "" if the blob isn't a value's root."""
    root = seen.root
    return "" if root is None else type_of(root.serializer, root.head, root.body)


class Sharing:
    """Counts of the values that contain each chunk.

    The constructor counts them, by reading a few KiB of each blob of *store*.

    Args:
        limit: maximum number of blobs to read; None reads all.
        seen: called with each blob, to show progress.
        cipher: decrypts blobs; None without encryption.
    """

    def __init__(
        self,
        store: Store,
        limit: int | None = None,
        *,
        seen: Callable[[BlobInfo], None] | None = None,
        cipher: BlobCipher | None = None,
    ) -> None:
        self._counts: Counter[bytes] = Counter()
        infos = islice(store.blobs.scan(), limit)
        while page := list(islice(infos, PAGE)):
            if seen is not None:
                for info in page:
                    seen(info)
            for each in summarize_blobs(store, [info.digest for info in page], cipher):
                if each is not None and each.root is not None:
                    self._counts.update({_key(chunk.digest) for chunk in each.root.chunks})

    def __call__(self, digest: Digest) -> int:
        """Return how many values contain a chunk."""
        return self._counts[_key(digest)]


def _key(digest: Digest) -> bytes:
    return bytes.fromhex(digest[3:27])  # 96 bits: no two of 100,000 digests share them


# -- finding


def is_ref(text: str) -> bool:
    """Return whether *text* is a reference rather than a digest."""
    return text.startswith("offload:")


def digest_prefix(text: str) -> str | None:
    """Parse a digest, or at least its first 8 digits, and return it with ``b3:``.

    Accepts the forms that people see: without ``b3:``, and shortened. Return None if *text* is
    neither.
    """
    match = _PREFIX.fullmatch(text)
    return None if match is None else f"b3:{match['digits']}"


def partial_prefix(text: str) -> str | None:
    """Like `digest_prefix`, but accept a prefix of any length."""
    match = _PARTIAL.fullmatch(text)
    return None if match is None else f"b3:{match['digits']}"


def find_digest(store: Store, prefix: str) -> Digest:
    """Return the digest in *store* with this prefix; return a full digest without searching.

    Raises BlobMissing if there is none, InvalidRef if there are several.
    """
    if len(prefix) == _WHOLE:
        return parse_digest(prefix)
    found = list(islice(dict.fromkeys(blob_inspection_of(store).find(prefix)), _NAMED + 1))
    if not found:
        raise BlobMissing(
            f"{store.url} has no blob whose digest starts with {prefix}",
            digest=prefix,
            store=store.url,
        )
    if len(found) > 1:
        names = ", ".join(found[:_NAMED]) + (" …" if len(found) > _NAMED else "")
        raise InvalidRef(f"{prefix} is ambiguous: {names}; give more digits", store=store.url)
    return found[0]


# -- holders and removal


def tracked_holds(store: Store, *, required: bool) -> HoldTracking | None:
    """Return the interface for queries about holders; None if *store* doesn't track holds.

    Raises ConfigurationError instead of returning None if it is *required*.
    """
    tracking = hold_tracking_of(store)
    if tracking is None and required:
        raise ConfigurationError(
            f"{store.url} doesn't track holds: use Redis, alone or as the first of several stores",
            store=store.url,
        )
    return tracking


def holders_of(store: Store, digest: Digest) -> Mapping[str, float] | None:
    """Return a blob's holders, with seconds left; None if the store doesn't track holds."""
    return store.blobs.holders(digest) if store.blobs.tracks_holds else None


def stored_sizes(store: Store, digests: Sequence[Digest]) -> dict[Digest, int]:
    """Return the stored bytes of each blob that exists."""
    found = zip(digests, blob_inspection_of(store).peek(digests, 1), strict=True)
    return {digest: seen.size for digest, seen in found if seen is not None}


def remove_blobs(
    store: Store, digests: Sequence[Digest], *, force: bool
) -> dict[Digest, Mapping[str, float] | None]:
    """Delete blobs without holders; return those that were kept, with `holders_of` each.

    A blob is also kept if a hold was added just now. If the store doesn't track holds, all blobs
    are kept. With *force*, none is kept, and tasks that need one fail with BlobMissing.
    """
    if force:
        store.blobs.delete(digests)
        return {}
    tracking = hold_tracking_of(store)
    staying = set(digests if tracking is None else tracking.delete_unheld(digests))
    return {digest: holders_of(store, digest) for digest in digests if digest in staying}
