"""A store in a SQLite file, for a single machine without a server.

::

    blob     id, digest, size, until          a blob, and when it expires (seconds since 1970)
    content  id, content                      separate, because SQLite rewrites whole rows
    hold     digest, holder, until            until when a holder needs a blob
    pointer  name, value
    lease    name, owner, fence, until        until 0: released
    file     name, written, content           statistics of a process

It relies on a local disk, because SQLite's write-ahead log needs memory shared by all processes,
which network file systems lack, and on a single clock: the machine's.

Queries read ``until + 0.0``, which is a number even if another program wrote something else there.
"""

from __future__ import annotations

from offload.stores.sqlite.store import SQLiteStore, open_sqlite

__all__ = ("SQLiteStore", "open_sqlite")
