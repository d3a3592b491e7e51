"""The protocols that every store implements: blobs, pointers, and leases.

A *blob* is immutable bytes under the digest of its plain content. A *pointer* is a mutable
name, changed only by compare-and-swap. A *lease* is a lock that expires. Everything else that
offload stores is built from these three.

Rules for every implementation (``offload.testing`` has the suite that checks them):

- Calls are safe from several threads and processes at once, and after a fork.
- Times to live are seconds from now by the *store's* clock if it has one, so that clients'
  clocks don't matter.
- Only `BlobStore.release` and `BlobStore.delete` shorten the life of a blob.
- A driver's error leaves a store as `StoreUnavailable` (a retry may help) or as another
  `StoreError`, with the store's URL in it, and never as the driver's own type.
- A store doesn't interpret blobs; readers verify their digests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from offload.digest import Buffer, Digest

Parts = Sequence[Buffer]
"""The bytes of one blob, as buffers that are stored one after another without joining them."""

PUT = "put"
"""The holder shared by everyone who only needs a blob to live for some time."""

FOREVER = math.inf
"""Time to live of blobs that something names, such as a catalog's record.

A store that tracks holds keeps such a blob until its holder releases it. One that doesn't keeps it
until a sweep finds that nothing names it: see `offload.stores.capabilities.KeepsNamed`.
"""


def size_of(parts: Parts) -> int:
    """Return the bytes of a blob."""
    size = 0
    for part in parts:
        size += memoryview(part).nbytes
    return size


@dataclass(frozen=True)
class BlobInfo:
    """Size and remaining life of a blob.

    Attributes:
        size: stored bytes (after compression, with the leading byte).
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
        name: its digest or name.
        size: stored bytes.
        why: the reason, for people.
    """

    kind: str
    name: str
    size: int
    why: str


@runtime_checkable
class BlobStore(Protocol):
    """Immutable bytes by digest, each with an expiry.

    A *hold* states that its *holder* needs a blob for some time. A store that tracks holds
    expires a blob soon after its last hold was released; in any other, a blob lives as long as
    the longest requested time, regardless of releases.

    Attributes:
        tracks_holds: whether `release` has an effect.
    """

    @property
    def tracks_holds(self) -> bool: ...

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        """Keep each blob *ttl* seconds for *holder*; return the missing ones.

        Check and hold are one atomic step per blob: a blob that isn't returned doesn't expire
        within *ttl*, unless *holder* releases it. The hold of a missing blob is recorded too:
        the next writer of the blob keeps it for this holder as well. A holder has one hold of a
        blob, the longest it asked for. One round trip for any number of digests.
        """

    def put(
        self, blobs: Mapping[Digest, Parts], ttl: float, *, value_size: int | None = None
    ) -> None:
        """Store blobs for *ttl* seconds, unless a holder releases them earlier.

        A blob that exists keeps its content, and its life is only extended. A blob is visible
        whole or not at all, whenever its writer dies.

        Args:
            value_size: bytes of the value that they belong to, for stores that choose a tier
                by it.
        """

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        """End the holds of *holder*.

        A blob then expires with its last remaining hold, but not within *grace* seconds; its
        life is never extended. Blobs that *holder* doesn't hold stay unchanged. One round trip
        for any number of digests.
        """

    def holders(self, digest: Digest) -> Mapping[str, float]:
        """Return a blob's holders and the seconds left of their holds; {} if not tracked."""

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        """Yield the stored bytes of each digest, in this order.

        The store reads ahead a limited amount (a few chunks).

        Raises:
            BlobMissing: a blob doesn't exist.
            IntegrityError: a blob has more than *limit* bytes; its content isn't loaded.
        """

    def delete(self, digests: Iterable[Digest]) -> None:
        """Delete blobs now; missing ones are no error."""

    def scan(self) -> Iterator[BlobInfo]:
        """Yield every live blob. Concurrent changes may be missed."""


@runtime_checkable
class PointerStore(Protocol):
    """Mutable names for small values (at most 64 KiB), changed by compare-and-swap.

    Names are 1 to 200 characters of ``A-Z a-z 0-9 . _ - : @ + = /``, with no empty, ``.`` or
    ``..`` segment; others raise ValueError.
    """

    def read(self, name: str) -> bytes | None:
        """Return the value, or None if the name is unset."""

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """Read several pointers, as `read` does for one. The values may be read at different times.

        One round trip if the store can answer for several names at once.
        """

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        """Set *name* to *value* if it is *expected* now (None: unset), atomically.

        Returns whether it was set. A *value* of None unsets the name.
        """

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names that are set and start with *prefix*."""


@dataclass(frozen=True)
class LeaseInfo:
    """A lease that has an owner.

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
    """Locks with an owner, a time to live, and a fencing number. Names as for pointers."""

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:
        """Take the lease for *ttl* seconds; return None if another owner has it.

        Returns the fencing number, which increases whenever the lease is taken, also after it
        expired or was released. The owner who takes it again renews it, with the same number.
        """

    def renew(self, name: str, owner: str, ttl: float) -> bool:
        """Extend the lease to *ttl* seconds from now; return False if *owner* has lost it."""

    def release(self, name: str, owner: str) -> bool:
        """Release the lease; return False if *owner* didn't have it."""

    def read(self, name: str) -> LeaseInfo | None:
        """Return the lease; None if it is free."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of leases that start with *prefix*. Some of them may have ended."""


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
        """Delete what expired and isn't deleted automatically, and yield each item.

        With *dry_run*, delete nothing. Several sweeps may run at once; whatever they and other
        clients do, nothing that is still needed is deleted.
        """

    def close(self) -> None:
        """Close connections and files. The store can be used again afterwards."""
