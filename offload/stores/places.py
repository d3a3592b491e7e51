"""What a store with several tiers is built on.

The first tier keeps account of all: of the holds, and for each blob that lies in another
tier a *note*, which says in which. `Places` is that account, `Versioned` what a lower tier's
blobs can do so that the account also ends them.

A blob in a lower tier has two ends. Its *life* ends as any blob's does: it is as long as was
asked for, and `BlobStore.release` shortens it. What its tier *promised* is how long the object
there is sure to be, and never gets less. A note is kept until the latter, so that a sweep finds
what ended before.

A life that ended does not begin again: the blob is missing for every call until it was
stored anew, as another version of the object, and noted again. So a sweeper that saw a version,
and after that saw that nobody needs the blob, may delete that version whenever it likes. And
whoever stores it holds it first, at least by a reservation, so that no sweeper who saw what is
written from then on can see that nobody needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from offload.digest import Digest
from offload.errors import StoreUnavailable
from offload.stores.protocols import Parts, SweepItem

__all__ = (
    "RESERVED",
    "Elsewhere",
    "Noted",
    "Place",
    "Places",
    "Version",
    "Versioned",
    "elsewhere",
    "place_of",
)

RESERVED = 3600.0

Noted = Callable[[Sequence[Digest]], Collection[Digest]]
"""Returns those of some blobs of which there is a note."""


@dataclass(frozen=True)
class Place:
    """Where a blob lies that is not in the first tier.

    Attributes:
        note: what is noted: words of the tiers' own, a space, and the tier. No two notings are
            the same.
        promised: seconds that the tier keeps it, from now.
        life: seconds that it has still to live; 0 if it has ended.
        held: seconds until nobody needs it nor is about to store it.
    """

    note: str
    promised: float
    life: float
    held: float

    @property
    def tier(self) -> str:
        return self.note.partition(" ")[2]


@runtime_checkable
class Places(Protocol):
    """The first tier's account of what lies in others. Each call is one round trip.

    Answers are about the blobs that are not in the first tier itself: where they lie, or None
    for one that lies nowhere.
    """

    def hold(
        self, digests: Sequence[Digest], ttl: float, holder: str
    ) -> Mapping[Digest, Place | None]:
        """Do as `BlobStore.hold`, with the lives of blobs elsewhere prolonged as well.

        None also for one whose life has ended.
        """

    def reserve(
        self, digests: Sequence[Digest], ttl: float, name: str
    ) -> Mapping[Digest, Place | None]:
        """The same for who is about to store them, without a hold: what lies nowhere is held
        until it is noted under the same *name*, or for `RESERVED` seconds.
        """

    def note(
        self, promised: Mapping[Digest, float], note: str, *, life: float, name: str
    ) -> Mapping[Digest, float]:
        """Note where blobs lie now and for how many seconds that is *promised*, and that they
        live; and end the reservation called *name*.

        A life that has not ended, and what the same tier promised for it, only get longer.
        Returns the seconds that are now noted as promised, where they are more.
        """

    def promise(self, promised: Mapping[Digest, tuple[Place, float]]) -> set[Digest]:
        """Note that more was promised for what is noted still as it was seen; return the others."""

    def find(self, digests: Sequence[Digest]) -> Mapping[Digest, Place | None]:
        """Tell where blobs lie, without changing anything; also of those that have ended."""

    def forget(self, places: Mapping[Digest, Place]) -> None:
        """Drop what is noted still as it was seen, with its life."""

    def noted(self) -> Iterator[list[Digest]]:
        """Yield the digests of all notes, some thousand at a time."""


@dataclass(frozen=True)
class Version:
    """One writing of a blob in a lower tier.

    Attributes:
        tag: what no other writing of it has.
        size: stored bytes.
    """

    tag: str
    size: int


@runtime_checkable
class Versioned(Protocol):
    """Blobs in a lower tier that the first tier's account can end before their time."""

    def prolong(self, digests: Sequence[Digest], ttl: float) -> Mapping[Digest, float]:
        """Keep what is there of these blobs for *ttl* seconds at least; return for how many."""

    def replace(self, blobs: Mapping[Digest, Parts], ttl: float) -> Mapping[Digest, float]:
        """Store blobs that live *ttl* seconds at least; none lives shorter than it would have.

        Each is then a version that was not there before this was called (another's, if that was
        stored meanwhile). Returns for how many seconds each is kept.
        """

    def versions(self, digests: Sequence[Digest]) -> Mapping[Digest, Version]:
        """Return what is there of these blobs now, ended or not."""

    def discard(self, versions: Mapping[Digest, Version]) -> set[Digest]:
        """Delete blobs that are there still in this version; return those that are gone now.

        Raises ConfigurationError where that cannot be made sure of.
        """

    def sweep(self, noted: Noted, *, dry_run: bool) -> Iterator[SweepItem]:
        """Do as `Store.sweep`, without a look at blobs that are *noted*."""


class Elsewhere(StoreUnavailable):
    """A blob lies in a tier that is not asked here."""


def elsewhere(digest: Digest, tier: str, url: str) -> Elsewhere:
    """Return the error for a blob that the store at *url* notes to lie in another *tier*."""
    return Elsewhere(
        f"{digest} lies in {tier}, says {url}; this app does not use that store (any more): add it "
        "to offload_store again, until what it holds is not needed",
        digest=digest,
        store=url,
    )


def place_of(url: str) -> str:
    """Return what is noted of the tier at *url*: the same by whatever way it is reached."""
    return url.partition("?")[0]
