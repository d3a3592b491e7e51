"""A store in a bucket of S3, or of a server that speaks its protocol.

::

    <prefix>/blobs/b3-1f0c…      a blob, then 16 random bytes; its metadata tell its life
    <prefix>/pointers/keys!ref   a pointer: 16 random bytes, a byte "set", the value
    <prefix>/leases/sweep        a lease, likewise (JSON)
    <prefix>/stats/part-5e1d…    what a process counted; see `offload.metrics.snapshots`
    <prefix>/probe/…             asked once by each process, see below

S3 has no clock that a client could read beforehand, no expiry of single objects, and no
transactions; it has conditional requests. What is built from them:

**Conditions** are by ETag, which for equal bytes is equal. So everything written here holds
16 random bytes, and an ETag names one write, not one content: whoever deletes or replaces
what it saw cannot hit what somebody else wrote since.

**A blob's life** stands in its metadata as ``offload-ttl``, in seconds from the object's
Last-Modified; "now" is the Date of the server's answers. So no client's clock matters. What
prolongs a life copies the object onto itself, which moves no data to or from the client,
on condition that it was not modified since it was looked at. (Last-Modified counts whole
seconds: who finds an object of this very second waits for the next.) To be cheap, a life is
written longer than it was asked for, by the share ``ahead``: with the default of 1 a blob that
is asked for again and again is copied once in its promised time, however often that is.

**An end is an end**: a blob that expired is missing for every call, and nothing prolongs it.
A copy that was stamped after the end of what it copied (``offload-before``) does not count. So
the sweep, which waits ``skew`` seconds longer and deletes by ETag, cannot meet a life that is
being prolonged; and who stores the blob again replaces it by ETag, with new random bytes.

**Pointers and leases** are objects replaced by ETag. A pointer that is unset stays as a
small object, as a lease does that was released, and the sweep removes them later.

What is relied on:

- reads are consistent (S3 since 2020; SeaweedFS, MinIO, Ceph on one site);
- ``If-None-Match: *`` and ``If-Match`` on PUT hold. Before the first pointer or lease is
  written each process tries that; a server that ignores them is refused for these. As a
  second tier, for blobs alone, it will do;
- ``If-Match`` on DELETE, for `S3Store.sweep` alone; without it the bucket needs a lifecycle rule;
- the clocks of the servers behind one endpoint differ by less than ``skew``, and a write is
  seen within ``skew`` of its stamp.

A lifecycle rule that expires ``<prefix>/blobs/`` by age may stand beside this, if its days are
longer than the longest time that anything is kept, times ``1 + ahead``
(``celery offload store lifecycle`` writes it); and one for incomplete uploads is not needed, for
blobs go up in one piece.
"""
