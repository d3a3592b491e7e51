"""Small named files that change: pointers, and the records of leases."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from offload.stores.checks import check_name, check_value
from offload.stores.file.disk import Disk
from offload.stores.leases import Record, Records

__all__ = ("RECORD", "FilePointers", "FileRecords")

RECORD = re.compile(r"[0-9a-f]{40}", re.ASCII)
"""Names of a record's file."""
_LONGEST = 1000  # bytes of the first line that are read

T = TypeVar("T")


class FileRecords(Records):
    """Named bytes in a folder, each in a file called by the hash of its name.

    (Names have slashes, and some differ only in case, which not every file system tells apart.)
    The first line is the name, for people and for listing.
    """

    def __init__(self, disk: Disk, folder: str) -> None:
        self._disk = disk
        self._folder = disk.root / folder

    def read(self, name: str) -> bytes | None:
        with self._disk.errors():
            return self._read(name)

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        """Set a record to *value* (None: remove it) if it is *expected* now."""
        with self._disk.errors(), self._disk.lock(self._path(name).parent.name):
            if self._read(name) != expected:
                return False
            if value != expected:
                self._write(name, value)
            return True

    def change(self, name: str, decide: Callable[[Record], tuple[bytes | None, T]]) -> T:
        with self._disk.errors(), self._disk.lock(self._path(name).parent.name):
            now = self._disk.clock()
            content, result = decide(Record(self._read(name), now, now))
            if content is not None:
                self._write(name, content)
            return result

    def sweep(self, is_over: Callable[[Record], bool], *, dry_run: bool) -> Iterator[str]:
        with self._disk.errors():
            names = list(self.names())
            now = self._disk.sure_time() if names else 0.0
            for name in names:
                with self._disk.lock(self._path(name).parent.name):
                    over = is_over(Record(self._read(name), now, now))
                    if over and not dry_run:
                        self._write(name, None)
                if over:
                    yield name

    def names(self) -> Iterator[str]:
        for stripe in self._disk.entries(self._folder):
            for entry in self._disk.files(Path(stripe.path), RECORD):
                with suppress(FileNotFoundError), Path(entry.path).open("rb") as file:
                    name = file.readline(_LONGEST).rstrip(b"\n").decode("ascii", "replace")
                    with suppress(ValueError):  # others put it there
                        if self._path(name) == Path(entry.path):
                            yield name

    def _read(self, name: str) -> bytes | None:
        try:
            return self._path(name).read_bytes().partition(b"\n")[2]
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def _write(self, name: str, content: bytes | None) -> None:
        """Write or (None) remove a record; the caller has the lock of its folder."""
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
        with self._disk.errors():
            found = [name for name in self._records.names() if name.startswith(prefix)]
        return iter(found)
