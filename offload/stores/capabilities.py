"""Optional abilities of stores.

Every store implements `offload.stores.protocols`. Each optional ability is a runtime-checkable
protocol in this module; ``isinstance`` is the only way to check whether a store (or its blobs) has
it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from offload.digest import Digest
from offload.errors import ConfigurationError
from offload.stores.protocols import Parts, Store, SweepItem
from offload.stores.sums import Sums

LISTED_HOLDS = 5
"""Maximum number of holds per blob that `HoldTracking.longest_holds` returns."""


# -- for operators: inspect blobs


@dataclass(frozen=True)
class BlobPeek:
    """Size, time to live, and first bytes of a stored blob.

    Attributes:
        size: stored bytes.
        ttl: seconds until it expires.
        prefix: its first stored bytes.
        age: seconds since it was written or its expiry extended; None if unknown.
    """

    size: int
    ttl: float
    prefix: bytes
    age: float | None = None


@runtime_checkable
class BlobInspection(Protocol):
    """Blobs that can be inspected without reading them in full or extending their expiry."""

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        """Return each blob's state and first *size* bytes; None if it doesn't exist.

        Takes a few round trips for any number of digests. The caller limits the total bytes.
        """

    def find(self, prefix: str) -> Iterator[Digest]:
        """Yield the digests of stored blobs that start with *prefix*, such as ``b3:1f0c``.

        May include expired blobs.
        """


@runtime_checkable
class HoldTracking(Protocol):
    """Blobs whose holders are recorded; their `tracks_holds` is true."""

    def count_holders(self, digests: Sequence[Digest]) -> list[int]:
        """Return the number of holders of each blob, in one round trip."""

    def longest_holds(self, digests: Sequence[Digest]) -> list[Mapping[str, float]]:
        """Return the `LISTED_HOLDS` longest holds of each blob: seconds left, by holder.

        Takes one round trip for a few hundred digests.
        """

    def held_by(self, digests: Sequence[Digest], name: str) -> set[Digest]:
        """Return the blobs held by *name*: the ID of a task or result, a pin, or a full holder.

        Takes a few round trips for any number of digests.
        """

    def long_holds(self, least: float) -> Iterator[tuple[Digest, str, float]]:
        """Yield each hold with at least *least* seconds left: blob, holder, and seconds left.

        Includes holds of blobs that don't exist. May miss concurrent changes.
        """

    def delete_unheld(self, digests: Sequence[Digest]) -> set[Digest]:
        """Delete the blobs that have no holder and aren't being stored; return the others.

        Every later call treats deleted blobs as missing. In a lower tier, the next sweep deletes
        their objects.
        """


def blob_inspection_of(store: Store) -> BlobInspection:
    """Return the blobs of *store*. Raises ConfigurationError if they can't be inspected."""
    if isinstance(store.blobs, BlobInspection):
        return store.blobs
    raise ConfigurationError(
        f"{store.url}: its blobs can't be inspected: they lack `peek` and `find` "
        "(offload.stores.capabilities.BlobInspection)",
        store=store.url,
    )


def hold_tracking_of(store: Store) -> HoldTracking | None:
    """Return the blobs of *store* if it tracks holds, else None."""
    blobs = store.blobs
    return blobs if blobs.tracks_holds and isinstance(blobs, HoldTracking) else None


# -- for records that name blobs, in stores without holds

UNNAMED = 86400.0
"""Seconds within which a blob that was held `FOREVER` must be named, by default."""

Named = Callable[[Collection[Digest]], Collection[Digest]]
"""Returns which of the given blobs something names now, such as a catalog's record."""


@runtime_checkable
class KeepsNamed(Protocol):
    """A store without holds, in which blobs held `FOREVER` live as long as something names them.

    A writer first holds a blob `FOREVER`, and then writes the name. A sweep selects the blobs that
    were last held too long ago, and then asks which of them are named. It deletes the others, but
    none that was held again in the meantime.
    """

    def sweep_unnamed(self, named: Named, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Sweep like `Store.sweep`, and also delete blobs held `FOREVER` that aren't *named*.

        If *named* raises, the sweep ends without deleting any of the blobs in that call.
        """


# -- for locks: wake up on a release


@runtime_checkable
class NotifiesRelease(Protocol):
    """Leases whose release wakes a waiting client."""

    def wait_for_release(self, name: str, timeout: float) -> None:
        """Return when the lease may have been released, or after *timeout* seconds.

        A release wakes one waiting client.
        """

    def notify(self, name: str) -> None:
        """Wake another waiting client."""


# -- for catalogs: find out which pointers have changed


@runtime_checkable
class TagsWrites(Protocol):
    """Pointers whose listing reveals which of them were set again since an earlier listing."""

    def tagged_names(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Yield the names that are set, each with a tag that changes whenever its value is set.

        Takes a few requests for thousands of names, whereas reading takes one per value.
        """


# -- for results that are computed once: read a pointer and take its lease in one step


class Claim(NamedTuple):
    """Result of `ClaimsPointers.claim`; exactly one of the three is set.

    Attributes:
        value: the pointer's value.
        fence: the fencing number of the lease, which the caller now owns.
        left: seconds until another owner's lease expires.
    """

    value: bytes | None = None
    fence: int | None = None
    left: float = 0.0


@runtime_checkable
class ClaimsPointers(Protocol):
    """Leases that are taken and released in one round trip with the pointer of the same name.

    Attributes:
        can_claim: whether the server supports this.
    """

    @property
    def can_claim(self) -> bool: ...

    def claim(self, name: str, owner: str, ttl: float) -> Callable[[], Claim]:
        """Read the pointer *name*; if it is unset, take the lease *name* for *ttl* seconds.

        If another owner has the lease, the claim has the time left. This only sends the request. It
        returns a function, to be called once, that waits for the reply and returns it.
        """

    def settle(
        self, name: str, owner: str, expected: bytes | None, value: bytes, ttl: float
    ) -> Callable[[], int | None]:
        """If *owner* has the lease, swap the pointer *name*, and then release the lease.

        The pointer is unset after *ttl* seconds. This only sends the request. It returns a
        function, to be called once, that waits for the reply and returns it: 1 for success; 0 if
        *owner* doesn't have the lease; None if the pointer isn't as *expected*. Unless it returns
        1, nothing has changed.

        Args:
            name, owner: as given to `claim`.
        """

    def settle_later(
        self, name: str, owner: str, value: bytes, ttl: float, answered: Callable[[object], None]
    ) -> bool:
        """Defer a `settle` of an unset pointer until this process's next request to the store.

        Sends nothing now; the next request carries it and executes it first. Returns False, and
        does nothing, if that isn't possible. The caller should make sure that a request follows
        soon (see `DefersReleases.release_deferred`): if the process ends before, the lease expires.

        Args:
            answered: called by any thread with the reply, or with a StoreError if the server
                refused; it must not raise.
        """


# -- for small values: hold and store in one step


@dataclass(frozen=True)
class Wanted:
    """A blob to hold, and perhaps to store.

    Attributes:
        ttl: seconds to hold it.
        parts: its content, to store if it is missing; None only holds it.
        value_size: bytes of the value that it belongs to, as for `BlobStore.put`.
    """

    ttl: float
    parts: Parts | None = None
    value_size: int | None = None


@runtime_checkable
class HoldsAndPuts(Protocol):
    """Blobs that one request holds, and stores if they are missing.

    Use this for contents so small that sending them needlessly costs less than another request.
    """

    def hold_and_put(self, blobs: Mapping[Digest, Wanted], holder: str) -> set[Digest]:
        """Hold each blob like `BlobStore.hold`, and store the missing ones that have content.

        Takes one round trip, which sends all contents. Returns the blobs that were missing: all of
        them are now held, and those with content now exist.
        """


@runtime_checkable
class DefersReleases(Protocol):
    """Blobs whose holds a later request of the same process releases."""

    def release_later(self, digests: Sequence[Digest], holder: str, grace: float) -> bool:
        """Defer a `BlobStore.release` until this process's next request to the store.

        Sends nothing now. The next request carries the release and executes it first, so a hold
        that it adds for *holder* stays. Returns False, and does nothing, if that isn't possible. If
        the process ends before its next request, the holds expire by time, so call
        `release_deferred` soon.
        """

    def release_deferred(self) -> int:
        """Send the deferred releases that no request has carried yet.

        Takes one round trip, or none if there is nothing to send. Returns how many releases have
        failed permanently since the last call; these holds expire by time. Raises StoreUnavailable;
        the releases then wait for the next request.
        """


# -- for values: limits and tiers


@runtime_checkable
class LimitedChunks(Protocol):
    """A store that limits the size of chunks.

    Attributes:
        chunk_size: maximum bytes of a chunk.
    """

    chunk_size: int


def chunk_size_of(store: Store) -> int | None:
    """Return the maximum bytes of a chunk in *store*; None if it has no limit."""
    limits = [tier.chunk_size for tier in tiers_of(store) if isinstance(tier, LimitedChunks)]
    return min(limits, default=None)


@runtime_checkable
class PutsInParallel(Protocol):
    """Blobs of a store that stores several in parallel.

    Attributes:
        puts_at_once: how many blobs `put` stores in parallel.
    """

    @property
    def puts_at_once(self) -> int: ...


def puts_at_once(store: Store) -> int:
    """Return how many blobs *store* stores in parallel; 1 if it stores one after another."""
    blobs = [tier.blobs for tier in tiers_of(store)]
    return max(each.puts_at_once if isinstance(each, PutsInParallel) else 1 for each in blobs)


class StoreCounters(Protocol):
    """Counters by store, such as `offload.Counters`."""

    def of_store(self, store: str, **amounts: int) -> None:
        """Add to the counters of the store at this URL."""

    def took(self, step: str, seconds: float, *, store: str = "") -> None:
        """Record the duration of a step."""


@runtime_checkable
class Tiered(Protocol):
    """A store that consists of several stores."""

    @property
    def tiers(self) -> Sequence[Store]: ...

    def count_by_tier(self, counters: StoreCounters) -> None:
        """Count uploads, downloads, and errors of each tier from now on."""


def tiers_of(store: Store) -> Sequence[Store]:
    """Return the tiers of *store*, or *store* itself if it has none.

    The first tier has the pointers and leases.
    """
    return store.tiers if isinstance(store, Tiered) else (store,)


# -- for lower tiers: versions of blobs

Known = Callable[[Sequence[Digest]], Collection[Digest]]
"""Returns which of the given blobs have an entry in a tier index."""


@dataclass(frozen=True)
class Version:
    """One version of a blob; each write creates one.

    Attributes:
        tag: unique among the versions of this blob.
        size: stored bytes.
    """

    tag: str
    size: int


class VersionedBlobs(Protocol):
    """Blobs with versions, which can be deleted one by one."""

    def extend(self, digests: Sequence[Digest], ttl: float) -> Mapping[Digest, float]:
        """Keep existing blobs for at least *ttl* seconds; return the seconds that each is kept."""

    def replace(self, blobs: Mapping[Digest, Parts], ttl: float) -> Mapping[Digest, float]:
        """Store blobs for at least *ttl* seconds, without shortening any blob's life.

        Each blob then has a version that didn't exist before this call, from this or another
        writer. Returns the seconds that each blob is kept.
        """

    def versions(self, digests: Sequence[Digest]) -> Mapping[Digest, Version]:
        """Return the current versions of these blobs, expired or not; omit missing blobs."""

    def delete_versions(self, versions: Mapping[Digest, Version]) -> set[Digest]:
        """Delete blobs that still have this version; return the blobs that no longer exist.

        Raises ConfigurationError if the server can't guarantee that.
        """


@runtime_checkable
class VersionedStore(Protocol):
    """A store that can be a lower tier: the tier index decides when its blobs expire."""

    @property
    def versions(self) -> VersionedBlobs: ...

    def sweep(self, *, dry_run: bool = False, known: Known | None = None) -> Iterator[SweepItem]:
        """Sweep like `Store.sweep`, except blobs that are *known* to the tier index."""


# -- for statistics: add numbers, or keep small files


@runtime_checkable
class AddsNumbers(Protocol):
    """A store that adds up numbers from several processes."""

    @property
    def sums(self) -> Sums: ...


MAX_SMALL_FILE = 64 << 20
"""Maximum bytes to read of a small file."""
SMALL_FILE = re.compile(r"part-[0-9a-f]{32}(\.end)?|fold-[0-9]{10}-[0-9a-f]{32}", re.ASCII)
"""Pattern of the names of small files; other files don't belong to the store."""


@dataclass(frozen=True)
class SmallFile:
    """A small file.

    Attributes:
        name: its name.
        size: bytes of its content.
        tag: changes whenever the content does.
        written: time of the last write, in seconds since 1970 by the store's clock.
    """

    name: str
    size: int
    tag: str
    written: float


class SmallFiles(Protocol):
    """Small files, replaced atomically; `SMALL_FILE` matches their names.

    Methods raise the store's usual errors, but none for a missing file.

    Attributes:
        url: the store's URL.
        has_pointers: whether the store has working pointers, which can then name the head.
    """

    @property
    def url(self) -> str: ...
    @property
    def has_pointers(self) -> bool: ...

    def entries(self) -> list[SmallFile]:
        """Return all files."""

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the content of each file, up to `MAX_SMALL_FILE` bytes; None if it is missing."""

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file; each file has only one writer."""

    def remove(self, names: Sequence[str]) -> None:
        """Remove files."""

    def now(self) -> float:
        """Return the best estimate of the store's time without a request."""

    def sure_time(self) -> float:
        """Return a time that the store's clock has certainly reached, for deleting by age."""


@runtime_checkable
class KeepsFiles(Protocol):
    """A store that has small files."""

    @property
    def files(self) -> SmallFiles: ...
