"""`FileStore`: blobs, and its pointers, leases, and small files, in one folder."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from offload.stores.bases import Record, RecordLeases, Records
from offload.stores.capabilities import MAX_SMALL_FILE, SMALL_FILE, UNNAMED, Named, SmallFile
from offload.stores.checks import check_name, check_value
from offload.stores.file.blobs import FileBlobs
from offload.stores.file.disk import Disk
from offload.stores.protocols import SweepItem
from offload.stores.url import StoreURL, boolean, duration, file_mode, seconds

RECORD = re.compile(r"[0-9a-f]{40}", re.ASCII)
"""Pattern of the name of a record's file."""
_LONGEST = 1000  # bytes to read of the first line

T = TypeVar("T")


class FileStore:
    """A store in the folder *root*; `offload.stores.file` documents what it relies on.

    Args:
        skew: seconds by which the clocks of hosts that share the folder may differ; added to every
            blob's life.
        unnamed: seconds within which a blob that was held `FOREVER` must be named.
        lock_timeout: seconds to wait while another process changes the same file.
        fsync: whether writes must survive a power failure. If not, a power failure may damage
            blobs, which readers detect.
        mode: permissions of all files, such as 0o660 for users of one group, regardless of the
            umask; folders also get execute permissions. None makes them private to their owner.
        clock: returns seconds since 1970, in place of this host's and the file system's clock.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        skew: float = 60.0,
        unnamed: float = UNNAMED,
        lock_timeout: float = 10.0,
        fsync: bool = True,
        mode: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        root = Path(root).absolute()
        self.url = root.as_uri()
        disk = Disk(root, self.url, clock=clock, lock_timeout=lock_timeout, fsync=fsync, mode=mode)
        self.blobs = FileBlobs(disk, skew, unnamed)
        self.pointers = FilePointers(disk)
        self.leases = RecordLeases(FileRecords(disk, "leases"))
        self.files = DiskFiles(disk)
        self.disk = disk

    def sweep(self, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Delete what has expired and what killed writers left, unless *dry_run*; yield it."""
        with self.disk.errors():
            left = self.disk.sweep(dry_run=dry_run)
        yield from left
        yield from self.blobs.sweep(dry_run=dry_run)
        yield from self.leases.sweep(dry_run=dry_run)

    def sweep_unnamed(self, named: Named, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Sweep like `sweep`, and also delete blobs held `FOREVER` that aren't *named*."""
        yield from self.sweep(dry_run=dry_run)
        yield from self.blobs.sweep_unnamed(named, dry_run=dry_run)

    def close(self) -> None:
        """Do nothing: no file stays open between calls."""


def open_file(url: StoreURL) -> FileStore:
    """Open ``file:///folder``.

    Options: ``skew``, ``unnamed``, ``lock_timeout`` (seconds), ``fsync``, ``mode`` (octal, as
    ``0660``).
    """
    if [host for host, _ in url.hosts] not in ([], ["localhost"]) or not url.path.strip("/"):
        url.refuse("a folder is written file:///path/to/folder, with three slashes")
    return FileStore(
        Path(url.path),
        skew=url.take("skew", duration, 60.0),
        unnamed=url.take("unnamed", duration, UNNAMED),
        lock_timeout=url.take("lock_timeout", seconds, 10.0),
        fsync=url.take("fsync", boolean, True),
        mode=url.take("mode", file_mode, None),
    )


class FileRecords(Records):
    """Records in a folder, each in a file named by the hash of the record's name.

    Files can't have the names themselves: these contain slashes, and may differ only in case, which
    some file systems ignore. The file's first line is the name, for people and for listing.
    """

    def __init__(self, disk: Disk, folder: str) -> None:
        self._disk = disk
        self._folder = disk.root / folder

    def read(self, name: str) -> bytes | None:
        with self._disk.errors():
            return self._read(name)

    def record(self, name: str) -> Record:
        with self._disk.errors():
            content = self._read(name)
            # Without any record, there may be no folder from which to read the clock.
            now = self._disk.clock() if content is None else self._disk.shared_clock()
            return Record(content, now, now)

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        """Set a record to *value* (None deletes it) if it is *expected*; return whether it was."""
        with self._disk.errors(), self._disk.lock(self._path(name).parent.name):
            if self._read(name) != expected:
                return False
            if value != expected:
                self._write(name, value)
            return True

    def change(self, name: str, decide: Callable[[Record], tuple[bytes | None, T]]) -> T:
        with self._disk.errors(), self._disk.lock(self._path(name).parent.name):
            now = self._disk.shared_clock()  # hosts whose clocks differ may take the same lease
            content, result = decide(Record(self._read(name), now, now))
            if content is not None:
                self._write(name, content)
            return result

    def sweep(self, is_over: Callable[[Record], bool], *, dry_run: bool) -> Iterator[str]:
        with self._disk.errors():
            names = list(self._names())
            now = self._disk.sure_time() if names else 0.0
            for name in names:
                with self._disk.lock(self._path(name).parent.name):
                    over = is_over(Record(self._read(name), now, now))
                    if over and not dry_run:
                        self._write(name, None)
                if over:
                    yield name

    def names(self, prefix: str = "") -> Iterator[str]:
        with self._disk.errors():
            found = [name for name in self._names() if name.startswith(prefix)]
        return iter(found)

    def _names(self) -> Iterator[str]:
        for stripe in self._disk.entries(self._folder):
            for entry in self._disk.files(Path(stripe.path), RECORD):
                with suppress(FileNotFoundError), Path(entry.path).open("rb") as file:
                    name = file.readline(_LONGEST).rstrip(b"\n").decode("ascii", "replace")
                    with suppress(ValueError):  # not a file of the store
                        if self._path(name) == Path(entry.path):
                            yield name

    def _read(self, name: str) -> bytes | None:
        try:
            return self._path(name).read_bytes().partition(b"\n")[2]
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def _write(self, name: str, content: bytes | None) -> None:
        """Write a record, or delete it if *content* is None; the caller holds the folder's lock."""
        path = self._path(name)
        if content is None:
            path.unlink(missing_ok=True)
        else:
            self._disk.move(self._disk.write_aside((name.encode(), b"\n", content)), path)
        self._disk.flush((path.parent, path.parent.parent))

    def _path(self, name: str) -> Path:
        hashed = hashlib.blake2b(check_name(name).encode(), digest_size=20).hexdigest()
        return self._folder / hashed[:2] / hashed


class FilePointers:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._records = FileRecords(disk, "pointers")

    def read(self, name: str) -> bytes | None:
        return self._records.read(name)

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        return list(map(self.read, names))

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        if value is not None:
            check_value(value)
        return self._records.swap(name, expected, value)

    def names(self, prefix: str = "") -> Iterator[str]:
        return self._records.names(prefix)


class DiskFiles:
    """The files in ``stats/``. A power failure may damage them; readers skip damaged files."""

    has_pointers = True

    def __init__(self, disk: Disk) -> None:
        self.url = disk.url
        self._disk = disk
        self._folder = disk.root / "stats"

    def entries(self) -> list[SmallFile]:
        found = []
        with self._disk.errors():
            for entry in self._disk.files(self._folder, SMALL_FILE):
                with suppress(FileNotFoundError):
                    stat = entry.stat()
                    tag = f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"
                    found.append(SmallFile(entry.name, stat.st_size, tag, stat.st_mtime))
        return found

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        with self._disk.errors():
            return [self._read(name) for name in names]

    def _read(self, name: str) -> bytes | None:
        missing = FileNotFoundError, IsADirectoryError
        with suppress(*missing), (self._folder / name).open("rb") as file:
            return file.read(MAX_SMALL_FILE)
        return None

    def write(self, name: str, content: bytes) -> None:
        with self._disk.errors():
            self._disk.move(self._disk.write_aside((content,), fsync=False), self._folder / name)

    def remove(self, names: Sequence[str]) -> None:
        with self._disk.errors():
            for name in names:
                (self._folder / name).unlink(missing_ok=True)

    def now(self) -> float:
        return self._disk.clock()

    def sure_time(self) -> float:
        with self._disk.errors():
            return self._disk.sure_time()
