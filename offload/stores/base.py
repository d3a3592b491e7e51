"""What a store is: three small protocols over blobs, pointers and leases.

A *blob* is immutable bytes under the digest of its plain content. A *pointer* is a
mutable name, changed only by compare-and-swap. A *lease* is a lock that ends by itself.
Everything else that offload keeps is built from these three.

Rules that every implementation keeps (``offload.testing`` holds the suite that checks
them):

- Calls are safe from several threads and processes at once, and after a fork.
- Times to live are seconds from now by the *store's* clock where it has one, so that a
  client's clock does not matter.
- Nothing ever shortens the life of a blob except `BlobStore.delete`.
- A driver's error leaves a store as `StoreUnavailable` (trying again may help) or as
  another `StoreError`, with the store's URL in it, and never as the driver's own type.
- A store does not look into blobs; whoever reads one checks its digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from offload.digest import Buffer, Digest

__all__ = ("BlobInfo", "BlobStore", "LeaseStore", "Parts", "PointerStore", "Store")

Parts = Sequence[Buffer]
"""The bytes of one blob, as buffers to be stored one after another without joining."""


@dataclass(frozen=True)
class BlobInfo:
    """What a store knows of one blob.

    Attributes:
        size: stored bytes (after compression, with the leading byte).
        ttl: seconds it has still to live.
    """

    digest: Digest
    size: int
    ttl: float


@runtime_checkable
class BlobStore(Protocol):
    """Immutable bytes by digest, each with an expiry."""

    def missing(self, digests: Sequence[Digest], ttl: float) -> set[Digest]:
        """Make each blob that is there live at least *ttl* seconds more; return the others.

        "Is it there" and "keep it" are one step for each blob: one that is not
        returned cannot expire within *ttl*. One round trip for any number of digests.
        """

    def put(self, blobs: Mapping[Digest, Parts], ttl: float) -> None:
        """Store blobs that live at least *ttl* seconds.

        A blob that is there already stays as it is and only lives longer if need be. A
        blob is seen whole or not at all, whenever the writer dies.
        """

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        """Yield the stored bytes of each digest, in the order given.

        Reading ahead by the store is bounded (a few chunks). A blob of more than
        *limit* bytes raises `IntegrityError` before its content is held in memory;
        one that is not there raises `BlobMissing`.
        """

    def delete(self, digests: Iterable[Digest]) -> None:
        """Remove blobs now; those that are not there are no error."""

    def scan(self) -> Iterator[BlobInfo]:
        """Yield every live blob. What comes or goes meanwhile may be missed."""


@runtime_checkable
class PointerStore(Protocol):
    """Mutable names for small values (at most 64 KiB), changed by compare-and-swap.

    Names are 1 to 200 characters of ``A-Z a-z 0-9 . _ - /``, with no empty, ``.`` or
    ``..`` segment; anything else raises ValueError.
    """

    def read(self, name: str) -> bytes | None:
        """Return the value, or None where the name is unset."""

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        """Set *name* to *value* if it is *expected* now (None: unset), atomically.

        Returns whether it was set. A *value* of None unsets the name.
        """

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names that are set and begin with *prefix*."""


@runtime_checkable
class LeaseStore(Protocol):
    """Locks with an owner, a time to live and a fencing number. Names as for pointers."""

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:
        """Take the lease for *ttl* seconds; None if somebody else has it.

        Returns the fencing number: greater at every new taking of this name, also
        after it ran out or was released. The owner taking it again renews it and gets
        the same number.
        """

    def renew(self, name: str, owner: str, ttl: float) -> bool:
        """Prolong the lease to *ttl* seconds from now; False if *owner* has lost it."""

    def release(self, name: str, owner: str) -> bool:
        """Give the lease up; False if *owner* did not have it."""


@runtime_checkable
class Store(Protocol):
    """One place with all three.

    Attributes:
        url: where it is, without credentials; what errors and operators are shown.
    """

    @property
    def url(self) -> str: ...
    @property
    def blobs(self) -> BlobStore: ...
    @property
    def pointers(self) -> PointerStore: ...
    @property
    def leases(self) -> LeaseStore: ...

    def close(self) -> None:
        """Give back connections and files. The store may be used again after it."""
