"""`FsspecStore`: blobs and small files in a file system, without pointers and leases."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import quote

from offload.errors import ConfigurationError, OffloadError
from offload.stores.capabilities import MAX_SMALL_FILE, SMALL_FILE, SmallFile
from offload.stores.fsspec.blobs import CLOCK, FileSystem, Folder, FsspecBlobs
from offload.stores.processes import Threads
from offload.stores.protocols import LeaseInfo, SweepItem
from offload.stores.url import StoreURL, count, duration

_NAME = re.compile(r"([a-z0-9.-]{1,100})~([0-9]{1,15})~([0-9]{1,15})", re.ASCII)
"""Pattern of the names under which small files are stored."""


class FsspecStore:
    """A store of blobs in a file system, without pointers and leases.

    Args:
        connect: opens the file system; called once per process.
        url: the store's URL without credentials, for errors and operators.
        root: the folder in the file system.
        threads: number of files that each process reads and writes in parallel.
        skew: seconds by which the clocks of clients may differ; added to every lifetime.
        ahead: how much longer to keep a blob than requested, as a multiple of the request, so that
            further holds need no write for a while.
        clock: returns seconds since 1970, in place of this host's and the file system's clock.
    """

    def __init__(
        self,
        connect: Callable[[], FileSystem],
        *,
        url: str,
        root: str,
        threads: int = 8,
        skew: float = 60.0,
        ahead: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.url = url
        self._threads = Threads(threads, "offload-fsspec")
        folder = Folder(connect, url, root, clock=clock)
        self.blobs = FsspecBlobs(folder, self._threads, skew=skew, ahead=ahead)
        self.files = FsspecFiles(folder.beside("stats"), self._threads)
        self.pointers = NoPointers(url)
        self.leases = NoLeases(url)

    def sweep(self, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Delete what has expired, unless *dry_run*; yield it."""
        yield from self.blobs.sweep(dry_run=dry_run)

    def close(self) -> None:
        """Stop this process's threads; the next call starts new ones."""
        self._threads.close()


def open_fsspec(url: StoreURL) -> FsspecStore:
    """Open ``fsspec+PROTOCOL://…``, such as ``fsspec+gs://bucket/folder``.

    Options, with defaults: ``threads`` (8), ``skew`` (60 seconds), ``ahead`` (1); see
    `FsspecStore`. All others go to the file system (``token``, ``account_name``, …).
    """
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "fsspec":
            raise
        url.refuse('fsspec is not installed: pip install "offload[fsspec]"')
    protocol = url.scheme.partition("+")[2]
    if not protocol:
        url.refuse("name the protocol, as in fsspec+gs://bucket/folder")
    threads = url.take("threads", count, 8)
    skew = url.take("skew", duration, 60.0)
    ahead = url.take("ahead", duration, 1.0)
    options = {name: url.take(name, _unchanged, None) for name in list(url._options)}
    target = f"{protocol}://{_login(url)}{_hosts(url)}{quote(url.path, safe='/ ')}"

    def make() -> tuple[FileSystem, str]:
        made: tuple[FileSystem, str] = url_to_fs(
            target, **options, skip_instance_cache=True, use_listings_cache=False
        )
        return made

    try:  # open it now, to report a missing package early
        _, root = make()
    except OffloadError:
        raise
    except Exception as exc:
        said = str(exc).replace(str(url.password), "…") if url.password else str(exc)
        url.refuse(f"fsspec can't open it: {type(exc).__name__}: {said[:300]}")
    return FsspecStore(
        lambda: make()[0],
        url=url.public,
        root=root,
        threads=max(threads, 1),
        skew=skew,
        ahead=ahead,
    )


def _unchanged(value: Any) -> Any:
    return value


def _login(url: StoreURL) -> str:
    words = [quote(word, safe="") for word in (url.username, url.password) if word is not None]
    return ":".join(words) + "@" if words else ""


def _hosts(url: StoreURL) -> str:
    return ",".join(host if port is None else f"{host}:{port}" for host, port in url.hosts)


class NoPointers:
    """Pointers that raise a ConfigurationError saying what to configure."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self, name: str) -> bytes | None:
        _refuse(self._url)

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        _refuse(self._url)

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        _refuse(self._url)

    def names(self, prefix: str = "") -> Iterator[str]:
        _refuse(self._url)


class NoLeases:
    """Leases that raise a ConfigurationError saying what to configure."""

    def __init__(self, url: str) -> None:
        self._url = url

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:
        _refuse(self._url)

    def renew(self, name: str, owner: str, ttl: float) -> bool:
        _refuse(self._url)

    def release(self, name: str, owner: str) -> bool:
        _refuse(self._url)

    def read(self, name: str) -> LeaseInfo | None:
        _refuse(self._url)

    def names(self, prefix: str = "") -> Iterator[str]:
        _refuse(self._url)


def _refuse(url: str) -> NoReturn:
    raise ConfigurationError(
        f"{url} can store only blobs, because fsspec has no compare-and-swap: put it "
        'behind a store that does, as in store=["redis://…", "fsspec+gs://…"]',
        store=url,
    )


@dataclass(frozen=True)
class _Version:
    """One version of a small file.

    Attributes:
        name: the file's name.
        written: when it was written, in milliseconds since 1970 by the writer's clock.
        size: its bytes.
    """

    name: str
    written: int
    size: int

    @property
    def file(self) -> str:
        return f"{self.name}~{self.written}~{self.size}"


class FsspecFiles:
    """The files in ``stats/``. Replacing one writes a new version, valid once it is complete."""

    has_pointers = False

    def __init__(self, folder: Folder, threads: Threads) -> None:
        self.url = folder.url
        self._folder = folder
        self._threads = threads

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
        written = max([int(self._folder.clock() * 1000), *(each.written + 1 for each in before)])
        self._folder.write(content, _Version(name, written, len(content)).file)
        for each in before:
            self._folder.remove(each.file)

    def remove(self, names: Sequence[str]) -> None:
        wanted = set(names)
        if wanted:
            files = [each.file for each in self._versions() if each.name in wanted]
            self._threads.each(self._folder.remove, files)

    def strays(self) -> list[str]:
        """Return the names in ``stats/`` that don't belong to the store."""
        own = {each.file for each in self._versions()}
        names = self._folder.sizes()
        return [f"stats/{n}" for n in names if n not in own and not CLOCK.fullmatch(n)]

    def now(self) -> float:
        return self._folder.clock()

    def sure_time(self) -> float:
        its_time = self._folder.time()
        now = self._folder.clock()
        return now if its_time is None else min(now, its_time)

    def _versions(self, *, whole: bool = False) -> list[_Version]:
        """Return the versions that exist; with *whole*, only complete ones."""
        found = []
        for file, size in self._folder.sizes().items():
            match = _NAME.fullmatch(file)
            is_ours = match is not None and SMALL_FILE.fullmatch(match[1])
            if match is not None and is_ours and (not whole or size in (None, int(match[3]))):
                found.append(_Version(match[1], int(match[2]), int(match[3])))
        return found
