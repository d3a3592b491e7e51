"""Blobs in file systems that fsspec reaches: Google and Azure storage, HDFS, SFTP, and others.

::

    blobs/b3-1f0c…/5e1d…                        the content, under a random name
    blobs/b3-1f0c…/5e1d….1767225600.4194304     a mark: it is complete; its expiry and size
    stats/part-5e1d…~1767225600000~812          what a process counted: when it was written, its
                                                size; see `offload.metrics.snapshots`

Content counts once a mark exists beside it, so the file system needn't replace files
atomically. Extending a life adds an empty mark, and nothing is ever written twice: no writer
can shorten a life or disturb a reader.

**Limits**, as fsspec has no compare-and-swap:

- It has no pointers and no leases, and serves as a second tier behind a store that has them.
- Lives follow the clients' clocks, which must differ by less than ``skew``.
- `FsspecStore.sweep` deletes what expired more than ``skew`` ago by the sweeper's clock and, if
  it reports when files were written (`modified`; most do), by the file system's. Only that time
  separates it from a client that extends a life at the last moment.
- The file system must show a write to everyone at once, as Google's and Azure's do. Whether it
  survives a power failure is up to the file system.
"""

from __future__ import annotations

from offload.stores.fsspec.store import FsspecStore, open_fsspec

__all__ = ("FsspecStore", "open_fsspec")
