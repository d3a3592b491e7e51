"""A store in a folder, shared by processes of one machine or through NFS.

::

    blobs/1f/b3-1f0c…     a blob; the file's mtime is its expiry
    kept/1f/b3-1f0c…      an empty mark: the blob was held FOREVER; see `FileBlobs`
    pointers/9a/9a41…     a pointer, under the hash of its name (which is its first line)
    leases/9a/9a41…       a lease, in the same format
    locks/1f              locked while a file in a folder 1f changes
    stats/part-5e1d…      what a process counted; see `offload.metrics.snapshots`
    tmp/                  files being written

It relies on:

- **Atomic renames** within a file system, which NFS also has. They make a blob, pointer, or lease
  visible in full or not at all, no matter when a process is killed. A file is flushed to disk
  before it gets its name, and the folder after that.
- **flock(2)**, which makes "check, then hold" one step that a sweep can't interrupt, and makes
  compare-and-swap possible. A lock ends with its owner, so a killed process leaves nothing
  locked. On NFS, Linux extends locks to other hosts, unless the mount has ``nolock`` or
  ``local_lock``: then pointers and leases are safe only among processes of one host.
- **No host's clock being behind** by more than ``skew``, which is added to every blob's life.
  A clock that is ahead, by any amount, neither deletes blobs early nor reports them missing: a
  blob must also have expired by the file system's clock (with NFS, the file server's).

The files' mtimes are data: preserve them when you copy such a folder (``cp -a``, ``rsync -a``).
"""

from __future__ import annotations

from offload.stores.file.store import FileStore, open_file

__all__ = ("FileStore", "open_file")
