"""A store in a folder, shared by the processes of one machine or through NFS.

::

    blobs/1f/b3-1f0c…     a blob; the file's mtime is the moment until which it lives
    pointers/9a/9a41…     a pointer, under the hash of its name (which is its first line)
    leases/9a/9a41…       a lease, likewise
    locks/1f              what is locked while a file in a folder 1f changes
    stats/part-5e1d…      what a process counted; see `offload.metrics.snapshots`
    tmp/                  what is being written

What is relied on, and for what:

- **rename within a file system is atomic**, also on NFS. That alone makes a blob, pointer
  or lease whole or not there at all, whoever is killed when. Files are flushed to disk
  before they get their name, and the folder after that.
- **flock(2)** makes "is it there, then keep it" one step against the sweep, and pointers
  and leases comparable-and-swappable. It ends with its owner, so a killed process leaves
  nothing locked. Linux carries it over NFS to other hosts, unless the mount says ``nolock``
  or ``local_lock``: then pointers and leases are safe only among the processes of one host.
- **no host's clock is behind by more than** ``skew``, which every blob lives longer for that.
  One that is ahead, by however much, removes nothing early, and misses nothing: what has
  expired by its clock must have done so by the file system's (the file server's, over NFS)
  as well.

The files' mtimes are data: copy such a folder with them (``cp -a``, ``rsync -a``).
"""

from __future__ import annotations

from offload.stores.file.store import FileStore, open_file

__all__ = ("FileStore", "open_file")
