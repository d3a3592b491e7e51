"""One of the lower tiers."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from offload.digest import Digest
from offload.stores.capabilities import blob_inspection_of
from offload.stores.places import Versioned, place_of
from offload.stores.protocols import PUT, Parts, Store

__all__ = ("Tier",)

Clock = Callable[[], float]

AHEAD = 0.5
"""The share by which a tier without versions is asked for more than is needed."""


class Tier:
    """A store below the first.

    Attributes:
        place: what is noted of it.
        versions: None where its blobs can only go by their age.
    """

    def __init__(self, store: Store, clock: Clock = time.monotonic) -> None:
        self.store = store
        self.place = place_of(store.url)
        found = getattr(store, "versions", None)
        self.versions: Versioned | None = found if isinstance(found, Versioned) else None
        self._clock = clock

    def add(self, blobs: Mapping[Digest, Parts], ttl: float) -> dict[Digest, float]:
        """Store blobs for *ttl* seconds at least, and return for how many each is kept from now.

        Where there are versions, each is a new one.
        """
        began = self._clock()
        if self.versions is not None:
            kept = dict(self.versions.replace(blobs, ttl))
        else:
            promised = ttl * (1 + AHEAD)
            self.store.blobs.put(blobs, promised)
            kept = dict.fromkeys(blobs, promised)
        return self._from_now(kept, began)

    def keep(self, digests: Sequence[Digest], ttl: float) -> dict[Digest, float]:
        """Keep blobs for *ttl* seconds at least; return for how many those are kept from now
        that are there.
        """
        began = self._clock()
        if self.versions is not None:
            kept = dict(self.versions.prolong(digests, ttl))
        else:
            promised = ttl * (1 + AHEAD)
            gone = self.store.blobs.hold(digests, promised, PUT)
            kept = {digest: promised for digest in digests if digest not in gone}
        return self._from_now(kept, began)

    def there(self, digests: Sequence[Digest]) -> Collection[Digest]:
        """Return which of these blobs exist."""
        if self.versions is not None:
            return self.versions.versions(digests).keys()
        seen = blob_inspection_of(self.store).peek(digests, 1)
        return {digest for digest, each in zip(digests, seen, strict=True) if each is not None}

    def _from_now(self, kept: Mapping[Digest, float], began: float) -> dict[Digest, float]:
        """Return what was promised between *began* and now as what is left of it for sure."""
        took = self._clock() - began
        return {digest: max(left - took, 0.001) for digest, left in kept.items()}
