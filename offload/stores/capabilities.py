"""Optional abilities of stores.

Every store offers what `offload.stores.protocols` requires. Each further ability is a
runtime-checkable protocol in this module; ``isinstance`` tells whether a store (or its blobs)
has it, and nothing else does.
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
    """Size, remaining life, and first bytes of a stored blob.

    Attributes:
        size: stored bytes.
        ttl: seconds until it expires.
        prefix: its first stored bytes.
        age: seconds since it was written or its life was extended; None if unknown.
    """

    size: int
    ttl: float
    prefix: bytes
    age: float | None = None


@runtime_checkable
class BlobInspection(Protocol):
    """Blobs that can be inspected without reading them whole or extending their lives."""

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        """Return each blob's state and first *size* bytes; None if it doesn't exist.

        Few round trips for any number of digests. The caller limits how many bytes that is.
        """

    def find(self, prefix: str) -> Iterator[Digest]:
        """Yield the digests of stored blobs that start with *prefix*, such as ``b3:1f0c``.

        Some of them may have expired.
        """


@runtime_checkable
class HoldTracking(Protocol):
    """Blobs whose holders are recorded; their `tracks_holds` is true."""

    def count_holders(self, digests: Sequence[Digest]) -> list[int]:
        """Return the number of holders of each blob. One round trip."""

    def longest_holds(self, digests: Sequence[Digest]) -> list[Mapping[str, float]]:
        """Return the `LISTED_HOLDS` longest holds of each blob: holder and seconds left.

        One round trip for some hundred digests.
        """

    def held_by(self, digests: Sequence[Digest], name: str) -> set[Digest]:
        """Return the blobs held by *name*: a task's or result's id, a pin, or a whole holder.

        Few round trips for any number of digests.
        """

    def long_holds(self, least: float) -> Iterator[tuple[Digest, str, float]]:
        """Yield each hold that lasts at least *least* more seconds: blob, holder, seconds left.

        Also of blobs that don't exist. Concurrent changes may be missed.
        """

    def delete_unheld(self, digests: Sequence[Digest]) -> set[Digest]:
        """Delete the blobs that have no holder and aren't being stored; return the others.

        Deleted blobs are missing for every call from then on. In a lower tier, the next sweep
        deletes the object.
        """


def blob_inspection_of(store: Store) -> BlobInspection:
    """Return the blobs of *store*; raises ConfigurationError if they can't be inspected."""
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
"""Default: seconds within which something must name a blob that was held `FOREVER`."""

Named = Callable[[Collection[Digest]], Collection[Digest]]
"""Return those of the given blobs that something names now, such as a catalog's record."""


@runtime_checkable
class KeepsNamed(Protocol):
    """A store without holds, in which blobs held `FOREVER` live as long as something names them.

    A writer that names a blob holds it `FOREVER` first, and then writes the name. A sweep chooses
    the blobs for which that was too long ago, asks what is named after that, and deletes each of
    the others if it hasn't been held in the meantime.
    """

    def sweep_unnamed(self, named: Named, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Sweep as `Store.sweep` does, and also what was held `FOREVER` and isn't *named*.

        An error of *named* ends the sweep before anything that it was asked about is deleted.
        """


# -- for locks: wake up on a release


@runtime_checkable
class NotifiesRelease(Protocol):
    """Leases whose release wakes a client that waits for it."""

    def wait_for_release(self, name: str, timeout: float) -> None:
        """Return when the lease may have been released, or after *timeout* seconds.

        A release wakes one of the clients that wait.
        """

    def notify(self, name: str) -> None:
        """Wake another client that waits."""


# -- for catalogs: tell which pointers have changed


@runtime_checkable
class TagsWrites(Protocol):
    """Pointers whose list tells which of them have been set again since an earlier list."""

    def tagged_names(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Yield the names that are set, each with a tag that is new whenever its value is set.

        A few requests for thousands of names, where reading each value takes one.
        """


# -- for results that are computed once: read a pointer and take its lease at once


class Claim(NamedTuple):
    """What `ClaimsPointers.claim` found or took; exactly one of the three.

    Attributes:
        value: of the pointer.
        fence: the fencing number of the lease, which the caller has now.
        left: seconds until another owner's lease expires.
    """

    value: bytes | None = None
    fence: int | None = None
    left: float = 0.0


@runtime_checkable
class ClaimsPointers(Protocol):
    """Leases that are taken and released in one round trip with the pointer of the same name.

    Attributes:
        can_claim: whether the server can do both at once.
    """

    @property
    def can_claim(self) -> bool: ...

    def claim(self, name: str, owner: str, ttl: float) -> Callable[[], Claim]:
        """Find the pointer *name* if it is set; otherwise take the lease *name* for *ttl* seconds,
        unless another owner has it.

        This only sends the request. Returns a function, to be called once, that waits for the
        answer.
        """

    def settle(
        self, name: str, owner: str, expected: bytes | None, value: bytes, ttl: float
    ) -> Callable[[], int | None]:
        """Swap the pointer *name*, if *owner* has the lease, and then release the lease.

        The pointer is unset after *ttl* seconds. This only sends the request. Returns a function,
        to be called once, that waits for the answer: 1 if it is done, 0 if *owner* doesn't have the
        lease, and None if the pointer isn't as *expected*; then nothing was done.

        Args:
            name, owner: as given to `claim`.
        """

    def settle_later(
        self, name: str, owner: str, value: bytes, ttl: float, answered: Callable[[object], None]
    ) -> bool:
        """Do what `settle` does to a pointer that is unset, with this process's next request to the
        store, but before what that does.

        Sends nothing now. Returns False, and does nothing, if that isn't possible. The caller
        should see to it that there soon is a request (see `DefersReleases.release_deferred`): if
        the process ends before, the lease expires.

        Args:
            answered: called with the answer, by any thread, or with the StoreError that the server
                answered; it must not raise.
        """


# -- for small values: hold and store at once


@dataclass(frozen=True)
class Wanted:
    """A blob to be held, and perhaps stored.

    Attributes:
        ttl: seconds for which it is held.
        parts: its content, to be stored if it is missing; None: only hold it.
        value_size: bytes of the value that it belongs to, as for `BlobStore.put`.
    """

    ttl: float
    parts: Parts | None = None
    value_size: int | None = None


@runtime_checkable
class HoldsAndPuts(Protocol):
    """Blobs that are held, and stored where missing, by one request.

    Worthwhile for contents so small that sending them needlessly costs less than asking first.
    """

    def hold_and_put(self, blobs: Mapping[Digest, Wanted], holder: str) -> set[Digest]:
        """Hold each blob as `BlobStore.hold` does, and store the missing ones that have a content.

        Returns the blobs that were missing. All of them are held, and those with a content exist
        now. One round trip, in which all contents are sent.
        """


@runtime_checkable
class DefersReleases(Protocol):
    """Blobs whose holds are released along with a later request of the same process."""

    def release_later(self, digests: Sequence[Digest], holder: str, grace: float) -> bool:
        """Release as `BlobStore.release` does, with this process's next request to the store, but
        before what that does: a hold that it adds for *holder* stays.

        Sends nothing now. Returns False, and does nothing, if that isn't possible. A process that
        ends before its next request releases nothing: the holds expire. So the caller should call
        `release_deferred` soon.
        """

    def release_deferred(self) -> int:
        """Release what no request has carried yet. One round trip; none if there is nothing.

        Returns how many releases have failed for good since the last call: those holds expire.
        Raises StoreUnavailable; what wasn't released waits for the next request.
        """


# -- for values: limits and tiers


@runtime_checkable
class LimitedChunks(Protocol):
    """A store that limits the size of a chunk.

    Attributes:
        chunk_size: bytes.
    """

    chunk_size: int


def chunk_size_of(store: Store) -> int | None:
    """Return the maximum bytes of a chunk in *store*; None if it has no limit."""
    limits = [tier.chunk_size for tier in tiers_of(store) if isinstance(tier, LimitedChunks)]
    return min(limits, default=None)


@runtime_checkable
class PutsInParallel(Protocol):
    """Blobs of a store that stores several of them at once.

    Attributes:
        puts_at_once: how many of the blobs given to `put`.
    """

    @property
    def puts_at_once(self) -> int: ...


def puts_at_once(store: Store) -> int:
    """Return the maximum number of blobs that *store* stores at once; 1 if one after another."""
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
    """A store that consists of several."""

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
"""Return those of the given blobs that a tier index has an entry for."""


@dataclass(frozen=True)
class Version:
    """One write of a blob.

    Attributes:
        tag: unique among the writes of this blob.
        size: stored bytes.
    """

    tag: str
    size: int


class VersionedBlobs(Protocol):
    """Blobs of which each write is a version, which can be deleted by itself."""

    def extend(self, digests: Sequence[Digest], ttl: float) -> Mapping[Digest, float]:
        """Keep existing blobs at least *ttl* seconds; return how long each is kept."""

    def replace(self, blobs: Mapping[Digest, Parts], ttl: float) -> Mapping[Digest, float]:
        """Store blobs for at least *ttl* seconds, without shortening any life.

        Each is then a version that didn't exist before this call (another writer's, if that
        one stored it meanwhile). Returns how long each is kept, in seconds.
        """

    def versions(self, digests: Sequence[Digest]) -> Mapping[Digest, Version]:
        """Return the versions that exist of these blobs, expired or not."""

    def delete_versions(self, versions: Mapping[Digest, Version]) -> set[Digest]:
        """Delete blobs that still exist in this version; return those that no longer exist.

        Raises ConfigurationError if the server can't guarantee that.
        """


@runtime_checkable
class VersionedStore(Protocol):
    """A store that a tier index can govern: blobs expire there as the index says."""

    @property
    def versions(self) -> VersionedBlobs: ...

    def sweep(self, *, dry_run: bool = False, known: Known | None = None) -> Iterator[SweepItem]:
        """Sweep as `Store.sweep` does, without the blobs that are *known* to the index."""


# -- for statistics: add numbers, or keep small files


@runtime_checkable
class AddsNumbers(Protocol):
    """A store that adds numbers of several processes."""

    @property
    def sums(self) -> Sums: ...


MAX_SMALL_FILE = 64 << 20
"""Maximum bytes of a small file that are read."""
SMALL_FILE = re.compile(r"part-[0-9a-f]{32}(\.end)?|fold-[0-9]{10}-[0-9a-f]{32}", re.ASCII)
"""Names of small files; other files beside them aren't the store's."""


@dataclass(frozen=True)
class SmallFile:
    """A small file.

    Attributes:
        tag: changes whenever the content does.
        written: when, in seconds since 1970 by the store's clock.
    """

    name: str
    size: int
    tag: str
    written: float


class SmallFiles(Protocol):
    """Small files by name (`SMALL_FILE`), replaced atomically.

    Raises a store's usual errors, but none for a missing file.

    Attributes:
        url: of the store.
        has_pointers: whether the store's pointers work, which may name the file that counts.
    """

    @property
    def url(self) -> str: ...
    @property
    def has_pointers(self) -> bool: ...

    def entries(self) -> list[SmallFile]:
        """Return all files."""

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the content of each (at most `MAX_SMALL_FILE` bytes), None if it is missing."""

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file, which has one writer."""

    def remove(self, names: Sequence[str]) -> None:
        """Remove files."""

    def now(self) -> float:
        """Return the best known time without a request."""

    def sure_time(self) -> float:
        """Return a time in the past by the store's clock, for deleting by age."""


@runtime_checkable
class KeepsFiles(Protocol):
    """A store that keeps small files."""

    @property
    def files(self) -> SmallFiles: ...
