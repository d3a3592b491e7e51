"""`FileStore`: blobs, pointers, and leases in one folder."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from offload.stores.file.blobs import FileBlobs
from offload.stores.file.disk import Disk
from offload.stores.file.records import FilePointers, FileRecords
from offload.stores.file.small_files import DiskFiles
from offload.stores.leases import RecordLeases
from offload.stores.protocols import SweepItem
from offload.stores.url import StoreURL, boolean, duration, seconds

__all__ = ("FileStore", "open_file")


class FileStore:
    """A store in the folder *root*. `offload.stores.file` says what it relies on.

    Args:
        skew: seconds by which the clocks of hosts that share it may differ; added to every
            blob's life.
        lock_timeout: seconds to wait while another process changes the same file.
        fsync: whether writes must survive a power failure. Without it, a blob may have wrong
            content after one, which readers detect.
        mode: permissions of all files, such as 0o660 for users of one group, regardless of the
            umask; folders also get the rights to enter them. None: private to their owner.
        clock: returns seconds since the epoch; replaces this host's and the file system's.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        skew: float = 60.0,
        lock_timeout: float = 10.0,
        fsync: bool = True,
        mode: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        root = Path(root).absolute()
        self.url = root.as_uri()
        disk = Disk(root, self.url, clock=clock, lock_timeout=lock_timeout, fsync=fsync, mode=mode)
        self.blobs = FileBlobs(disk, skew)
        self.pointers = FilePointers(disk)
        self.leases = RecordLeases(FileRecords(disk, "leases"))
        self.files = DiskFiles(disk)
        self.disk = disk

    def sweep(self, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Delete what expired or was left by killed writers, and yield it."""
        with self.disk.errors():
            left = self.disk.sweep(dry_run=dry_run)
        yield from left
        yield from self.blobs.sweep(dry_run=dry_run)
        yield from self.leases.sweep(dry_run=dry_run)

    def close(self) -> None:
        """Do nothing: no file stays open between calls."""


def open_file(url: StoreURL) -> FileStore:
    """Open ``file:///folder``.

    Options: ``skew``, ``lock_timeout`` (seconds), ``fsync``, ``mode`` (octal, as ``0660``).
    """
    if [host for host, _ in url.hosts] not in ([], ["localhost"]) or not url.path.strip("/"):
        url.refuse("a folder is written file:///path/to/folder, with three slashes")
    return FileStore(
        Path(url.path),
        skew=url.take("skew", duration, 60.0),
        lock_timeout=url.take("lock_timeout", seconds, 10.0),
        fsync=url.take("fsync", boolean, True),
        mode=url.take("mode", _mode, None),
    )


def _mode(value: Any) -> int:
    """Convert permissions of files: octal if given as text."""
    try:
        mode = int(value, 8) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        mode = -1
    if isinstance(value, bool) or mode & 0o600 != 0o600 or not 0 < mode <= 0o666 or mode & 0o111:
        raise ValueError("octal permissions of files from 0600 to 0666, such as 0660")
    return mode
