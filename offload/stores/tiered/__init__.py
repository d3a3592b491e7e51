"""Several stores as one: ``["redis://…", "s3://…"]``.

The first tier, a Redis, has the pointers, the leases and the small blobs, and keeps account of
all others: who holds them, how long they live, and in which tier they lie. Blobs of a large
value go to a lower tier; of those, too, what is below 64 KiB (a value's root, a chunk that
compresses well) stays in the first, so that a read begins with one quick round trip.

What is noted, and when it may end, stands in `offload.stores.places`. What follows from it:

**Holding** is one round trip to the first tier, for blobs anywhere. The lower tier is asked only
where what it promised is less than what is asked for now; it is asked for more than that, so
as not to be asked each time.

**Storing** writes the blobs to the lower tier and then notes them. Each is a version that never
was there, also where something is: what lies there may be about to be swept.

**Reading** asks the first tier where each blob lies, and fetches from there in order. What is
noted nowhere (the first tier lost its notes) is looked for in all tiers.

**The sweep** looks at what is there of blobs with a note, then asks the first tier again who
needs them, and deletes, of those that nobody does, the version that it saw. So what a task
gave up goes from S3 with the next sweep. What a lower tier has without a note goes by its own
age, and so does everything in one without versions (`Versioned`: files, fsspec).

**Outages.** Without the first tier nothing goes. Without a lower one, what is small does, and
the rest is StoreUnavailable until it is back.
"""

from __future__ import annotations

from offload.stores.tiered.store import TieredStore

__all__ = ("TieredStore",)
