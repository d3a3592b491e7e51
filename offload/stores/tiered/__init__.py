"""Several stores as one: ``["redis://…", "s3://…"]``.

The first tier, a Redis, has the pointers, the leases, the small blobs, and the index of all
other blobs: who holds them, when they expire, and which tier they are in. Blobs of a large
value go to a lower tier, except those below 64 KiB (a value's root, a chunk that compresses
well): they stay in the first, so that a read starts with one quick round trip.

`offload.stores.tiered.index` defines entries and when they end. It follows:

**Holding** is one round trip to the first tier, for blobs in any tier. The lower tier is asked
only if it promised less time than is needed now; it is then asked for more than that, so that
later holds need no request.

**Storing** writes blobs to the lower tier and then adds their entries. Each write is a new
version, even if an object exists: a sweep may be about to delete that one.

**Reading** asks the index where each blob is, and fetches from there in order. A blob without
an entry (the first tier lost it) is searched in all tiers.

**The sweep** reads the versions of blobs with an entry, then asks the index again which of them
are still needed, and deletes the versions it saw of those that aren't. So what a task released
is deleted from S3 by the next sweep. Objects without an entry expire by their own age, as does
everything in a tier without versions (`VersionedStore`): files and fsspec.

**Outages.** Without the first tier, nothing works. Without a lower one, small values work, and
all else is StoreUnavailable until it is back.
"""

from __future__ import annotations

from offload.stores.tiered.store import TieredStore

__all__ = ("TieredStore",)
