"""Several stores as one: ``["redis://…", "s3://…"]``.

The first tier, a Redis, has the pointers, the leases, the small blobs, and the index of all
other blobs: who holds them, when they expire, and which tier they are in. Blobs of a large
value go to a lower tier, except those below 64 KiB (a value's root, or a chunk that compresses
well). These stay in the first tier, so that a read starts with one fast round trip.

`offload.stores.tiered.index` defines the index's entries, and when they end.

**Holding** takes one round trip to the first tier, for blobs in any tier. The lower tier gets a
request only if it promised less time than is needed now; it is then asked for more than that, so
that later holds need no request.

**Storing** writes blobs to the lower tier and then adds their entries. Each write is a new
version, even if an object exists: a sweep may be about to delete that one.

**Reading** asks the index where each blob is, and fetches from there in order. For a blob without
an entry (the first tier lost it), all tiers are searched.

**A sweep** reads the versions of blobs with an entry, then asks the index again which of them are
still needed, and deletes the versions it saw of those that aren't. So the next sweep deletes from
S3 what a task has released. Objects without an entry expire by their own age, as does everything
in a tier without versions (`VersionedStore`): files and fsspec.

**Outages.** Without the first tier, nothing works. Without a lower tier, small values work, and
everything else raises StoreUnavailable until it is back.
"""

from __future__ import annotations

from offload.stores.tiered.store import TieredStore

__all__ = ("TieredStore",)
