"""Blobs in file systems that fsspec supports: Google and Azure storage, HDFS, SFTP, and others.

::

    blobs/b3-1f0c…/5e1d…                        the content, under a random name
    blobs/b3-1f0c…/5e1d….1767225600.4194304     a mark that it is complete, with expiry and size
    stats/part-5e1d…~1767225600000~812          what a process counted, with time of writing and
                                                size; see `offload.metrics.snapshots`

Content is valid once a mark exists beside it, so the file system needn't replace files atomically.
Extending a blob's life adds an empty mark, and nothing is ever written twice. So no writer can
shorten a life or disturb a reader.

**Limitations**, because fsspec has no compare-and-swap:

- The store has no pointers and no leases. Use it as a second tier behind a store that has them.
- Lives follow the clients' clocks, which must differ by less than ``skew``.
- `FsspecStore.sweep` deletes what expired more than ``skew`` ago by the sweeper's clock, and also
  by the file system's if that reports when files were written (`modified`; most do). Only ``skew``
  separates a sweep from a client that extends a life at the last moment.
- A write must be visible to all clients at once, as in Google's and Azure's storage. Whether it
  survives a power failure depends on the file system.
"""

from __future__ import annotations

from offload.stores.fsspec.store import FsspecStore, open_fsspec

__all__ = ("FsspecStore", "open_fsspec")
