"""What a store is: three small protocols over blobs, pointers and leases.

A *blob* is immutable bytes under the digest of its plain content. A *pointer* is a
mutable name, changed only by compare-and-swap. A *lease* is a lock that ends by itself.
Everything else that offload keeps is built from these three.

Rules that every implementation keeps (``offload.testing`` holds the suite that checks
them):

- Calls are safe from several threads and processes at once, and after a fork.
- Times to live are seconds from now by the *store's* clock where it has one, so that a
  client's clock does not matter.
- Nothing ever shortens the life of a blob except `BlobStore.release` and `BlobStore.delete`.
- A driver's error leaves a store as `StoreUnavailable` (trying again may help) or as
  another `StoreError`, with the store's URL in it, and never as the driver's own type.
- A store does not look into blobs; whoever reads one checks its digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from offload.digest import Buffer, Digest

__all__ = (
    "PUT",
    "BlobInfo",
    "BlobStore",
    "LeaseStore",
    "Parts",
    "PointerStore",
    "Store",
    "SweepItem",
)

Parts = Sequence[Buffer]
"""The bytes of one blob, as buffers to be stored one after another without joining."""

PUT = "put"
"""The holder that all share who only want a blob to live for some time."""


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


@dataclass(frozen=True)
class SweepItem:
    """Something that a sweep removed, or would remove.

    Attributes:
        kind: ``blob``, ``pointer``, ``lease`` or ``file`` (what a killed writer left).
        name: the digest, or the name.
        size: stored bytes.
        why: for people.
    """

    kind: str
    name: str
    size: int
    why: str


@runtime_checkable
class BlobStore(Protocol):
    """Immutable bytes by digest, each with an expiry.

    A *hold* is somebody's stated need of a blob for some time. Where a store keeps account
    of them (`tracks_holds`), a blob ends soon after its last hold is given up; elsewhere each
    lives as long as the longest that was ever asked for, whoever gives up what.

    Attributes:
        tracks_holds: whether `release` does anything.
    """

    @property
    def tracks_holds(self) -> bool: ...

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        """Keep each blob for *ttl* seconds in the name of *holder*; return those not there.

        "Is it there" and "keep it" are one step for each blob: one that is not returned
        cannot end within *ttl*, unless *holder* releases it. The hold of one that is not
        there is noted all the same: whoever stores it next keeps it for this holder, too.
        A holder has one hold of a blob, the longest it asked for. One round trip for any
        number of digests.
        """

    def put(
        self, blobs: Mapping[Digest, Parts], ttl: float, *, value_size: int | None = None
    ) -> None:
        """Store blobs that live *ttl* seconds, unless a holder releases them before.

        A blob that is there already stays as it is and only lives longer if need be. A
        blob is seen whole or not at all, whenever the writer dies. *value_size* is how many
        bytes the value has that they are of, for stores that choose a place by it.
        """

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        """Give up what *holder* holds.

        A blob then ends with the last hold that is left, but not before *grace* seconds
        have passed; its life is never prolonged. What *holder* does not hold stays as it
        is. One round trip for any number of digests.
        """

    def holders(self, digest: Digest) -> Mapping[str, float]:
        """Return who holds a blob and for how many seconds; nothing where no account is kept."""

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

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """Return what `read` would for each name, but not all of one moment.

        One round trip where the store can answer for several names at once.
        """

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

    def sweep(self, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Remove what has ended and does not go by itself, and yield each as it goes.

        With *dry_run* nothing is removed. Several may sweep at once; nothing that anybody
        may still need is removed, however they and others interleave.
        """

    def close(self) -> None:
        """Give back connections and files. The store may be used again after it."""
