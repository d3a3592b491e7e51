"""Blobs in whatever fsspec reaches: Google and Azure storage, HDFS, SFTP and so on.

::

    blobs/b3-1f0c…/5e1d…                        the content, under a random name
    blobs/b3-1f0c…/5e1d….1767225600.4194304     that it is whole, lives until then, its size
    stats/part-5e1d…~1767225600000~812          what a process counted: when it was written, its
                                                size; see `offload.metrics.snapshots`

A content counts when a mark beside it says so; so it does not matter whether the file
system replaces files in one step. What prolongs a life adds an empty mark, and nothing is ever
written twice: no writer can shorten a life or disturb a reader.

**What it does not promise**, because fsspec has nothing to compare and swap by:

- there are no pointers and no leases. It serves as a second tier, behind a store that has
  them;
- lives are by the clocks of the clients, which must differ by less than ``skew``;
- `FsspecStore.sweep` deletes what ended more than ``skew`` ago, by the sweeper's clock and by
  the file system's, where that tells when files were written (`modified`; most do). Nothing
  but that time keeps it apart from a client that prolongs a life in its last moment;
- whether a write outlives a power failure is the file system's business, and that what was
  written is seen by all at once as well: it must be so. (It is with Google and Azure.)
"""

from __future__ import annotations

from offload.stores.fsspec.store import FsspecStore, open_fsspec

__all__ = ("FsspecStore", "open_fsspec")
