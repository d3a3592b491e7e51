"""The protocols that every store implements: blobs, pointers, and leases.

A *blob* is immutable bytes, stored under the digest of its plain content. A *pointer* is a mutable
name, changed only by compare-and-swap. A *lease* is a lock that expires. Everything else that
offload stores is built from these three.

Rules for every implementation (the suite in ``offload.testing`` checks them):

- Calls are safe from several threads and processes at the same time, and after a fork.
- Times to live are seconds from now, by the *store's* clock if it has one, so that clients'
  clocks don't matter.
- Only `BlobStore.release` and `BlobStore.delete` shorten a blob's life.
- Stores convert drivers' errors: to `StoreUnavailable` if a retry may help, else to another
  `StoreError`. Both name the store's URL.
- A store doesn't interpret blobs; readers verify their digests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from offload.digest import Buffer, Digest

Parts = Sequence[Buffer]
"""The bytes of one blob, as buffers that are stored one after another, without joining them."""

PUT = "put"
"""The holder shared by all callers that only need a blob to live for some time."""

FOREVER = math.inf
"""Time to live of blobs that something names, such as a catalog's record.

A store that tracks holds keeps such a blob until its holder releases it. Another store keeps it
until a sweep finds that nothing names it; see `offload.stores.capabilities.KeepsNamed`.
"""


def size_of(parts: Parts) -> int:
    """Return the size of a blob in bytes."""
    size = 0
    for part in parts:
        size += memoryview(part).nbytes
    return size


@dataclass(frozen=True)
class BlobInfo:
    """Size and time to live of a blob.

    Attributes:
        digest: its digest.
        size: stored bytes, after compression, including the leading byte.
        ttl: seconds until it expires.
    """

    digest: Digest
    size: int
    ttl: float


@dataclass(frozen=True)
class SweepItem:
    """Something that a sweep deleted, or would delete.

    Attributes:
        kind: ``blob``, ``hold``, ``pointer``, ``lease``, or ``file`` (left by a killed writer).
        name: the digest or name.
        size: stored bytes.
        why: the reason, as text for people.
    """

    kind: str
    name: str
    size: int
    why: str


@runtime_checkable
class BlobStore(Protocol):
    """Immutable blobs by digest, each with an expiry.

    A *hold* states that its *holder* needs a blob for some time. In a store that tracks holds, a
    blob expires soon after its last hold is released. In any other store, it lives for the longest
    time requested, regardless of releases.

    Attributes:
        tracks_holds: whether the store tracks holds, so that `release` has an effect.
    """

    @property
    def tracks_holds(self) -> bool: ...

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        """Hold each blob for *holder* for *ttl* seconds; return the missing ones.

        Check and hold are one atomic step per blob: a blob that isn't returned doesn't expire
        within *ttl*, unless *holder* releases it. Holds of missing blobs are also recorded, so the
        next writer of such a blob also keeps it for this holder. A holder has only one hold of a
        blob: the longest it requested. Takes one round trip for any number of digests.
        """

    def put(
        self, blobs: Mapping[Digest, Parts], ttl: float, *, value_size: int | None = None
    ) -> None:
        """Store blobs for *ttl* seconds, unless a holder releases them earlier.

        A blob that exists keeps its content, and its life is only extended. A blob is visible in
        full or not at all, no matter when its writer dies.

        Args:
            value_size: bytes of the value that the blobs belong to, by which a store may choose
                the tier.
        """

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        """Release the holds of *holder*.

        A blob then expires with its last remaining hold, but not within *grace* seconds. Its life
        is never extended. Blobs that *holder* doesn't hold are unchanged. Takes one round trip for
        any number of digests.
        """

    def holders(self, digest: Digest) -> Mapping[str, float]:
        """Return a blob's holders, with seconds left; empty if the store doesn't track holds."""

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        """Yield the stored bytes of each blob, in order, reading a few chunks ahead.

        Raises:
            BlobMissing: if a blob doesn't exist.
            IntegrityError: if a blob has more than *limit* bytes; its content isn't loaded.
        """

    def delete(self, digests: Iterable[Digest]) -> None:
        """Delete blobs now; ignore missing ones."""

    def scan(self) -> Iterator[BlobInfo]:
        """Yield every live blob. May miss concurrent changes."""


@runtime_checkable
class PointerStore(Protocol):
    """Mutable names for small values (at most 64 KiB), changed by compare-and-swap.

    Names are 1 to 200 characters of ``A-Z a-z 0-9 . _ - : @ + = /``, with no empty, ``.`` or
    ``..`` segment; others raise ValueError.
    """

    def read(self, name: str) -> bytes | None:
        """Return the value; None if the name is unset."""

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the values of several pointers, which may be read at different times.

        Takes one round trip if the store can read several at once.
        """

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        """Set *name* to *value* if its value is *expected*, atomically; return whether it was.

        None stands for an unset name, both as *expected* and as *value*.
        """

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names that are set and start with *prefix*."""


@dataclass(frozen=True)
class LeaseInfo:
    """A lease that is taken.

    Attributes:
        owner: see `LeaseStore.acquire`.
        fence: its fencing number.
        ttl: seconds until it expires.
    """

    owner: str
    fence: int
    ttl: float


@runtime_checkable
class LeaseStore(Protocol):
    """Locks with an owner, a time to live, and a fencing number.

    The rules for names are those of `PointerStore`.
    """

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:
        """Take the lease for *ttl* seconds; return None if another owner has it.

        Returns the fencing number, which increases whenever the lease is taken, even after it
        expired or was released. If its owner takes it again, it is renewed, with the same number.
        """

    def renew(self, name: str, owner: str, ttl: float) -> bool:
        """Extend the lease to *ttl* seconds from now; return False if *owner* has lost it."""

    def release(self, name: str, owner: str) -> bool:
        """Release the lease; return False if *owner* didn't have it."""

    def read(self, name: str) -> LeaseInfo | None:
        """Return the lease; None if it is free."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of leases that start with *prefix*. May include leases that ended."""


@runtime_checkable
class Store(Protocol):
    """Blobs, pointers, and leases in one place.

    Attributes:
        url: its location without credentials, for errors and operators.
    """

    @property
    def url(self) -> str: ...
    @property
    def blobs(self) -> BlobStore: ...
    @property
    def pointers(self) -> PointerStore: ...
    @property
    def leases(self) -> LeaseStore: ...

    def sweep(self, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Delete what has expired, unless the server does so itself, and yield each item.

        With *dry_run*, delete nothing. Several sweeps may run at the same time. No matter what they
        and other clients do, a sweep never deletes anything that is still needed.
        """

    def close(self) -> None:
        """Close connections and files. The store can be used again afterwards."""
