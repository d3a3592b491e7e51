"""`SQLiteStore`: blobs, pointers, and leases in one SQLite file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from offload.stores.protocols import SweepItem
from offload.stores.sqlite.blobs import SQLiteBlobs
from offload.stores.sqlite.database import Database
from offload.stores.sqlite.records import SQLiteFiles, SQLiteLeases, SQLitePointers
from offload.stores.url import StoreURL, boolean, file_mode, seconds

__all__ = ("SQLiteStore", "open_sqlite")


class SQLiteStore:
    """A store in the SQLite file *path*, which the processes of one machine share.

    Args:
        timeout: seconds to wait for other processes' transactions.
        fsync: whether what was written survives a power failure. A killed process never loses
            anything.
        mode: permissions of the file, such as 0o660 for users of one group.
        clock: returns seconds since the epoch.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        timeout: float = 30.0,
        fsync: bool = True,
        mode: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        path = Path(path).absolute()
        self.url = f"sqlite://{path.as_posix()}"
        self.database = Database(
            path, self.url, timeout=timeout, fsync=fsync, mode=mode or 0o600, clock=clock
        )
        self.blobs = SQLiteBlobs(self.database)
        self.pointers = SQLitePointers(self.database)
        self.leases = SQLiteLeases(self.database)
        self.files = SQLiteFiles(self.database)

    def sweep(self, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Delete what expired, yield it, and return its space to the file system."""
        yield from self.leases.sweep(dry_run=dry_run)
        yield from self.blobs.sweep(dry_run=dry_run)

    def close(self) -> None:
        """Close this process's connection; the next call opens another."""
        self.database.close()


def open_sqlite(url: StoreURL) -> SQLiteStore:
    """Open ``sqlite:///path/offload.db``.

    Options: ``timeout`` (seconds), ``fsync``, ``mode`` (octal, as ``0660``).
    """
    if url.hosts or not url.path.strip("/") or url.path.endswith("/"):
        url.refuse("a file is written sqlite:///path/to/offload.db, with three slashes")
    return SQLiteStore(
        Path(url.path),
        timeout=url.take("timeout", seconds, 30.0),
        fsync=url.take("fsync", boolean, True),
        mode=url.take("mode", file_mode, None),
    )
