"""`FsspecStore`: blobs in a file system, and no pointers or leases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn
from urllib.parse import quote

from offload.errors import ConfigurationError, OffloadError
from offload.stores.fsspec.blobs import FsspecBlobs
from offload.stores.fsspec.folder import FileSystem, Folder
from offload.stores.fsspec.small_files import FsspecFiles
from offload.stores.protocols import SweepItem
from offload.stores.threads import Threads
from offload.stores.url import StoreURL, count, duration

__all__ = ("FsspecStore", "open_fsspec")


class FsspecStore:
    """A store of blobs alone over the file systems that *connect* makes, one for each process.

    Args:
        url: what errors and operators are shown; no credentials.
        root: the folder in the file system.
        threads: files under way at once, in each process.
        skew: seconds by which the clocks of clients may differ; blobs live longer by that.
        ahead: the share by which a life is written longer than asked, so that asking again
            costs no write before that is used up.
        clock: seconds since 1970, in place of this host's clock and the file system's.
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
        folder = Folder(connect, url, root)
        self.blobs = FsspecBlobs(folder, self._threads, skew=skew, ahead=ahead, clock=clock)
        self.files = FsspecFiles(folder.beside("stats"), self._threads, clock)
        self.pointers = NoPointers(url)
        self.leases = NoLeases(url)

    def sweep(self, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Remove what expired, and yield it."""
        yield from self.blobs.sweep(dry_run=dry_run)

    def close(self) -> None:
        """End this process's threads; the next call begins new ones."""
        self._threads.close()


def open_fsspec(url: StoreURL) -> FsspecStore:
    """Open ``fsspec+PROTOCOL://…``, as ``fsspec+gs://bucket/folder``.

    Options: ``threads`` (8), ``skew`` (60 seconds), ``ahead`` (1), see `FsspecStore`. All others
    are the file system's own (``token``, ``account_name``, …).
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
    options = {name: url.take(name, _as_it_is, None) for name in list(url._options)}
    target = f"{protocol}://{_login(url)}{_hosts(url)}{quote(url.path, safe='/ ')}"

    def make() -> tuple[FileSystem, str]:
        made: tuple[FileSystem, str] = url_to_fs(
            target, **options, skip_instance_cache=True, use_listings_cache=False
        )
        return made

    try:  # also to say at once which package is missing
        _, root = make()
    except OffloadError:
        raise
    except Exception as exc:
        said = str(exc).replace(str(url.password), "…") if url.password else str(exc)
        url.refuse(f"fsspec does not open it: {type(exc).__name__}: {said[:300]}")
    return FsspecStore(
        lambda: make()[0],
        url=url.public,
        root=root,
        threads=max(threads, 1),
        skew=skew,
        ahead=ahead,
    )


class NoPointers:
    """Refuses every call, and says what to do."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self, name: str) -> bytes | None:  # noqa: ARG002
        self._refuse()

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:  # noqa: ARG002
        self._refuse()

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:  # noqa: ARG002
        self._refuse()

    def names(self, prefix: str = "") -> Iterator[str]:  # noqa: ARG002
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigurationError(
            f"{self._url} holds blobs only, for fsspec cannot compare and swap: put it second, "
            'after a store that can, as in store=["redis://…", "fsspec+gs://…"]',
            store=self._url,
        )


class NoLeases(NoPointers):
    """Refuses every call likewise."""

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:  # noqa: ARG002
        self._refuse()

    def renew(self, name: str, owner: str, ttl: float) -> bool:  # noqa: ARG002
        self._refuse()

    def release(self, name: str, owner: str) -> bool:  # noqa: ARG002
        self._refuse()


def _as_it_is(value: Any) -> Any:
    return value


def _login(url: StoreURL) -> str:
    words = [quote(word, safe="") for word in (url.username, url.password) if word is not None]
    return ":".join(words) + "@" if words else ""


def _hosts(url: StoreURL) -> str:
    return ",".join(host if port is None else f"{host}:{port}" for host, port in url.hosts)
