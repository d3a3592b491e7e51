"""A store in a folder, shared by the processes of one machine or through NFS.

::

    blobs/1f/b3-1f0c…     a blob; the file's mtime is when it expires
    kept/1f/b3-1f0c…      an empty mark: the blob was held FOREVER; see `FileBlobs`
    pointers/9a/9a41…     a pointer, under the hash of its name (which is its first line)
    leases/9a/9a41…       a lease, in the same form
    locks/1f              locked while a file in a folder 1f changes
    stats/part-5e1d…      what a process counted; see `offload.metrics.snapshots`
    tmp/                  files being written

It relies on:

- **Atomic renames** within a file system, also on NFS. They make a blob, pointer, or lease
  visible whole or not at all, whenever a process is killed. Files are flushed to disk before
  they get their name, and the folder after that.
- **flock(2)**, which makes "check, then hold" one step that a sweep can't interrupt, and
  compare-and-swap possible. A lock ends with its owner, so a killed process leaves nothing
  locked. Linux extends it over NFS to other hosts, unless the mount says ``nolock`` or
  ``local_lock``: then pointers and leases are safe only among the processes of one host.
- **No host's clock being behind** by more than ``skew``, which is added to every blob's life.
  A clock that is ahead, by any amount, deletes nothing early and reports nothing missing: a
  blob must have expired by the file system's clock (over NFS, the file server's) as well.

The files' mtimes are data: copy such a folder with them (``cp -a``, ``rsync -a``).
"""

from __future__ import annotations

from offload.stores.file.store import FileStore, open_file

__all__ = ("FileStore", "open_file")
