"""What operators ask of blobs besides: many at once, without reading them whole.

Not part of `BlobStore`: no task needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from offload.digest import Digest
from offload.errors import ConfigurationError
from offload.stores.base import Store

__all__ = ("LAST", "Accounted", "Looked", "Seen", "accounted", "is_called", "looked")

LAST = 5
"""Holders of a blob that are read to find out when it expires."""


@dataclass(frozen=True)
class Seen:
    """What is seen of a blob.

    Attributes:
        size: stored bytes.
        ttl: seconds it has still to live.
        begin: its first stored bytes.
        age: seconds since it was written, or prolonged; None where the store does not know.
    """

    size: int
    ttl: float
    begin: bytes
    age: float | None = None


@runtime_checkable
class Looked(Protocol):
    """Blobs that can be looked at. Nothing is prolonged by that."""

    def look(self, digests: Sequence[Digest], size: int) -> list[Seen | None]:
        """Return what there is of each blob, with its first *size* bytes; None if it is not there.

        Few round trips for any number of digests. The caller bounds their number.
        """

    def named(self, begin: str) -> Iterator[Digest]:
        """Yield the digests that begin so (``b3:`` and hexadecimal digits) of blobs that are
        there, some of which may have ended.
        """


@runtime_checkable
class Accounted(Protocol):
    """Blobs whose holders are known."""

    def count_holders(self, digests: Sequence[Digest]) -> list[int]:
        """Return how many hold each blob. One round trip."""

    def last_holds(self, digests: Sequence[Digest]) -> list[Mapping[str, float]]:
        """Return, for each blob, `LAST` of its holders at most, those that hold it longest, and for
        how many seconds. One round trip for some hundred digests.
        """

    def held_by(self, digests: Sequence[Digest], name: str) -> set[Digest]:
        """Return those that are held in the name of a task, a result or a pin of this *name*, or
        by the holder *name*. Few round trips for any number of digests.
        """

    def drop(self, digests: Sequence[Digest]) -> set[Digest]:
        """Remove blobs that nobody holds, or is about to store; return the others.

        What is removed is missing for every call from then on. In a lower tier it is gone with
        the next sweep.
        """


def looked(store: Store) -> Looked:
    """Return the blobs of *store*; raises ConfigurationError if they cannot be looked at."""
    if isinstance(store.blobs, Looked):
        return store.blobs
    raise ConfigurationError(
        f"{store.url} cannot be looked at: its blobs have no `look` (offload.stores.looking)",
        store=store.url,
    )


def accounted(store: Store) -> Accounted | None:
    """Return the blobs of *store* if it keeps account of holders, else None."""
    blobs = store.blobs
    return blobs if blobs.keeps_holds and isinstance(blobs, Accounted) else None


def is_called(holder: str, name: str) -> bool:
    """Return whether *holder* is ``<name>`` or ``<kind>:<name>``, each also with ``+<number>``."""
    return any(
        called == name or called.startswith(f"{name}+")
        for called in (holder, holder.partition(":")[2])
    )
