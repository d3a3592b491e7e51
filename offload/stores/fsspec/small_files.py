"""Keep small files without ever writing one twice."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from offload.stores.capabilities import MAX_SMALL_FILE, SMALL_FILE, SmallFile
from offload.stores.fsspec.folder import CLOCK, Folder
from offload.stores.processes import Threads

__all__ = ("FsspecFiles",)

_NAME = re.compile(r"([a-z0-9.-]{1,100})~([0-9]{1,15})~([0-9]{1,15})", re.ASCII)


@dataclass(frozen=True)
class _Version:
    """One writing of a file: when (milliseconds by the writer's clock), how many bytes."""

    name: str
    written: int
    size: int

    @property
    def file(self) -> str:
        return f"{self.name}~{self.written}~{self.size}"


class FsspecFiles:
    """The files in ``stats/``. Replacing one writes a new version, which counts once whole."""

    has_pointers = False

    def __init__(self, folder: Folder, threads: Threads, clock: Callable[[], float]) -> None:
        self.url = folder.url
        self._folder = folder
        self._threads = threads
        self._clock = clock
        self._its_clock = folder.time if clock is time.time else clock

    def entries(self) -> list[SmallFile]:
        found: dict[str, _Version] = {}
        for version in self._versions(whole=True):
            if version.name not in found or found[version.name].written < version.written:
                found[version.name] = version
        return [
            SmallFile(version.name, version.size, str(version.written), version.written / 1000)
            for version in found.values()
        ]

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        wanted = set(names)
        versions: dict[str, list[_Version]] = {name: [] for name in names}
        for version in self._versions(whole=True):
            if version.name in wanted:
                versions[version.name].append(version)
        return self._threads.each(lambda name: self._read(versions[name]), names)

    def _read(self, versions: list[_Version]) -> bytes | None:
        for version in sorted(versions, key=lambda each: each.written, reverse=True):
            with suppress(FileNotFoundError):
                content = self._folder.read(version.file, size=min(version.size, MAX_SMALL_FILE))
                if len(content) == version.size:
                    return content
        return None

    def write(self, name: str, content: bytes) -> None:
        before = [each for each in self._versions() if each.name == name]
        written = max([int(self._clock() * 1000), *(each.written + 1 for each in before)])
        self._folder.write(content, _Version(name, written, len(content)).file)
        for each in before:
            self._folder.remove(each.file)

    def remove(self, names: Sequence[str]) -> None:
        wanted = set(names)
        if wanted:
            files = [each.file for each in self._versions() if each.name in wanted]
            self._threads.each(self._folder.remove, files)

    def strays(self) -> list[str]:
        """Return the names beside the statistics that are not the store's own."""
        own = {each.file for each in self._versions()}
        names = self._folder.sizes()
        return [f"stats/{n}" for n in names if n not in own and not CLOCK.fullmatch(n)]

    def now(self) -> float:
        return self._clock()

    def sure_time(self) -> float:
        server_time = self._its_clock()
        return self._clock() if server_time is None else min(self._clock(), server_time)

    def _versions(self, *, whole: bool = False) -> list[_Version]:
        """Return the versions that are there, those that are not *whole* only if wanted."""
        found = []
        for file, size in self._folder.sizes().items():
            match = _NAME.fullmatch(file)
            is_ours = match is not None and SMALL_FILE.fullmatch(match[1])
            if match is not None and is_ours and (not whole or size in (None, int(match[3]))):
                found.append(_Version(match[1], int(match[2]), int(match[3])))
        return found
