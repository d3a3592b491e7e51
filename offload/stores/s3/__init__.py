"""A store in a bucket of S3 or of a server with the same API.

::

    <prefix>/blobs/b3-1f0c…      a blob, then 16 random bytes; its metadata has its life
    <prefix>/pointers/keys!ref   a pointer: 16 random bytes, a byte "set", the value
    <prefix>/leases/sweep        a lease: 16 random bytes, JSON
    <prefix>/stats/part-5e1d…    what a process counted; see `offload.metrics.snapshots`
    <prefix>/probe/…             tried once by each process, see below

S3 has no clock that a client could read beforehand, no expiry of single objects, and no
transactions, but conditional requests:

**Conditions** compare ETags, and equal bytes have equal ETags. So each object contains 16
random bytes, and an ETag identifies one write rather than one content: a client that deletes
or replaces what it saw can't hit a later write.

**A blob's life** is in its metadata (``offload-ttl``), in seconds from the object's
Last-Modified; "now" is the Date of the server's answers. So no client's clock matters.
Extending a life copies the object onto itself, which transfers no data, on condition that it
wasn't modified since it was read. (Last-Modified has a resolution of a second: for an object
of the current second, the client waits for the next.) To save copies, a life is written longer
than asked for, by the share ``ahead``: with the default of 1, a blob that is held again and
again is copied once per promised time.

**An expired blob stays expired**: it is missing for every call, and nothing extends its life.
A copy stamped after the end of the copied life (``offload-before``) doesn't count. So the
sweep, which waits ``skew`` seconds longer and deletes by ETag, can't hit a life that is being
extended; and storing the blob again replaces it by ETag, with new random bytes.

**A blob held** `FOREVER` has a second life in its metadata (``offload-asked``), within which
something must name it, such as a catalog's record. After that it can still be read, and whoever
holds or stores it again writes another version, with other random bytes: a sweep that saw it
before, and then that nothing names it, deletes by ETag the version it saw. (A copy onto itself
would leave the ETag as it is.) That transfers the content, but not while it is in regular use.

**Pointers and leases** are objects replaced by ETag. An unset pointer and a released lease
stay as small objects until the sweep deletes them.

The store relies on:

- consistent reads (S3 since 2020; SeaweedFS, MinIO, Ceph on one site);
- ``If-None-Match: *`` and ``If-Match`` on PUT. Each process tries them before it first writes a
  pointer or lease, and rejects a server that ignores them. As a second tier, for blobs only,
  such a server works;
- ``If-Match`` on DELETE, only for `S3Store.sweep`; without it, the bucket needs a lifecycle rule;
- clocks of the servers behind one endpoint that differ by less than ``skew``, and writes that
  are visible within ``skew`` of their stamp.

A lifecycle rule may expire ``<prefix>/blobs/`` by age, if its days exceed the longest time that
anything is kept, times ``1 + ahead`` (``celery offload store lifecycle`` writes it). None is
needed for incomplete uploads, as blobs are uploaded in one piece.
"""
