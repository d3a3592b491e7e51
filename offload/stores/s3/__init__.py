"""A store in a bucket of S3, or of a server with the same API.

::

    <prefix>/blobs/b3-1f0c…      a blob, then 16 random bytes; its metadata has its life
    <prefix>/pointers/keys!ref   a pointer: 16 random bytes, a byte that says "set", the value
    <prefix>/leases/sweep        a lease: 16 random bytes, JSON
    <prefix>/stats/part-5e1d…    what a process counted; see `offload.metrics.snapshots`
    <prefix>/probe/…             each process tests conditions on it once, see below

S3 has no clock to read before a request, no expiry of single objects, and no transactions. But it
has conditional requests:

**Conditions** compare ETags, and equal bytes have equal ETags. So each object contains 16
random bytes, which makes an ETag identify a write rather than a content: a client that deletes
or replaces the version it saw can't hit a later write.

**A blob's life** is in its metadata (``offload-ttl``), in seconds from the object's
Last-Modified; "now" is the Date of the server's responses. So clients' clocks don't matter.
To extend a life, the object is copied onto itself, which transfers no data. The copy is made only
if the object wasn't modified since it was read. (Last-Modified has a resolution of one second: if
an object was written in the current second, the client waits for the next.) To save copies, a blob
lives longer than requested: ``ahead`` times the requested life is added, by default once. A blob
that is held again and again is then copied only once in the requested time.

**An expired blob stays expired**: it is missing for every call, and nothing extends its life.
A copy stamped after the end of the copied life (``offload-before``) is invalid. So a sweep, which
waits ``skew`` seconds longer and deletes by ETag, can't hit a blob whose life is being extended.
Storing the blob again replaces the object by ETag, with new random bytes.

**A blob held** `FOREVER` has a second life in its metadata (``offload-asked``), within which
something must name it, such as a catalog's record. After that, it can still be read, but a client
that holds or stores it again writes another version, with other random bytes. A sweep that saw the
old version, and then found that nothing names it, deletes only that version, by ETag. (A copy onto
itself would keep the ETag.) This transfers the content, but never while the blob is in regular use.

**Pointers and leases** are objects replaced by ETag. An unset pointer and a released lease
stay as small objects until the sweep deletes them.

The store relies on:

- consistent reads (S3 since 2020; SeaweedFS, MinIO, Ceph on one site);
- ``If-None-Match: *`` and ``If-Match`` on PUT. Each process tests them before it first writes a
  pointer or lease, and rejects a server that ignores them. Such a server still works as a second
  tier, which has only blobs;
- ``If-Match`` on DELETE, only for `S3Store.sweep`; without it, the bucket needs a lifecycle rule;
- clocks of the servers behind one endpoint that differ by less than ``skew``, and writes that
  are visible within ``skew`` of their stamp.

A lifecycle rule may expire ``<prefix>/blobs/`` by age if its days exceed the longest time that
anything is kept, times ``1 + ahead`` (``celery offload store lifecycle`` writes such a rule).
Incomplete uploads need no rule, because blobs are uploaded in one piece.
"""
