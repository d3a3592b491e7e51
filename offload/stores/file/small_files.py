"""Keep small files in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from offload.stores.capabilities import MAX_SMALL_FILE, SMALL_FILE, SmallFile
from offload.stores.file.disk import Disk

__all__ = ("DiskFiles",)


class DiskFiles:
    """The files in ``stats/``. A power failure may damage them; readers skip such files."""

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
