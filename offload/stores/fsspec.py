"""Blobs in whatever fsspec reaches: Google and Azure storage, HDFS, SFTP and so on.

::

    blobs/b3-1f0c…/5e1d…                        the content, under a random name
    blobs/b3-1f0c…/5e1d….1767225600.4194304     that it is whole, lives until then, its size

A content counts when a mark beside it says so; so it does not matter whether the file
system replaces files in one step. What prolongs a life adds an empty mark, and nothing is ever
written twice: no writer can shorten a life or disturb a reader.

**What it does not promise**, because fsspec has nothing to compare and swap by:

- there are no pointers and no leases. It serves as a second tier, behind a store that has
  them;
- lives are by the clocks of the clients, which must differ by less than ``skew``;
- `FsspecStore.sweep` deletes what ended more than ``skew`` ago. Nothing but that time keeps it
  apart from a client that prolongs a life in its last moment;
- whether a write outlives a power failure is the file system's business, and that what was
  written is seen by all at once as well: it must be so. (It is with Google and Azure.)
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import quote

from offload.digest import Buffer, Digest, parse_digest
from offload.errors import (
    BlobMissing,
    ConfigurationError,
    IntegrityError,
    OffloadError,
    StoreError,
    StoreUnavailable,
)
from offload.stores.base import PUT, BlobInfo, Parts, Swept
from offload.stores.checks import check_holder, check_limit, check_ttl
from offload.stores.processes import PerProcess
from offload.stores.threads import Threads
from offload.stores.urls import StoreURL, count, duration

__all__ = ("FsspecStore", "open_fsspec")

WINDOW = 32 << 20  # bytes read ahead
_SWEPT_AT_ONCE = 256
FileSystem = Any  # fsspec ships no types
_NAME = re.compile(r"b3-[0-9a-f]{64}", re.ASCII)
_MARK = re.compile(r"([0-9a-f]{32})\.([0-9]{1,15})\.([0-9]{1,15})", re.ASCII)


class FsspecStore:
    """A store of blobs alone over the file systems that *connect* makes, one for each process.

    Args:
        url: what errors and operators are shown; no credentials.
        root: the folder in the file system.
        threads: files under way at once, in each process.
        skew: seconds by which the clocks of clients may differ; blobs live longer by that.
        ahead: the share by which a life is written longer than asked, so that asking again
            costs no write before that is used up.
        clock: seconds since 1970.
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
        self.blobs = FsspecBlobs(
            _Folder(connect, url, root), self._threads, skew=skew, ahead=ahead, clock=clock
        )
        self.pointers = NoPointers(url)
        self.leases = NoLeases(url)

    def sweep(self, *, dry_run: bool = False) -> Iterator[Swept]:
        """Remove what expired, and yield it."""
        return self.blobs.sweep(dry_run=dry_run)

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


@dataclass(frozen=True)
class _Mark:
    """One content of a blob that is whole, and until when it lives."""

    name: str
    until: float
    size: int


class _Folder:
    """One folder in a file system, and its errors as ours."""

    def __init__(self, connect: Callable[[], FileSystem], url: str, root: str) -> None:
        self.url = url
        self._root = root.rstrip("/")
        self._systems = PerProcess(connect)

    def path(self, *names: str) -> str:
        return "/".join((self._root, "blobs", *names))

    def names(self, *folder: str) -> list[str]:
        """Return the names in a folder; none if it is not there."""
        path = self.path(*folder)
        try:
            with self._errors() as system:
                system.invalidate_cache(path)
                found = system.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return [str(name).rstrip("/").rpartition("/")[2] for name in found]

    def write(self, content: bytes, *names: str) -> None:
        with self._errors() as system:
            system.makedirs(self.path(*names[:-1]), exist_ok=True)
            system.pipe_file(self.path(*names), content)

    def read(self, *names: str) -> bytes:
        with self._errors() as system:
            content: bytes = system.cat_file(self.path(*names))
            return content

    def remove(self, *names: str) -> None:
        with suppress(FileNotFoundError), self._errors() as system:
            system.rm_file(self.path(*names))

    def remove_folder(self, *names: str) -> None:
        """Remove a folder that may be empty, where the file system has such things."""
        with suppress(StoreError, FileNotFoundError), self._errors() as system:
            system.rmdir(self.path(*names))

    @contextmanager
    def _errors(self) -> Iterator[FileSystem]:
        try:
            yield self._systems.get()
        except (FileNotFoundError, OffloadError):
            raise
        except PermissionError as exc:
            raise StoreError(
                f"{self.url} refuses ({exc}): check the credentials and rights", store=self.url
            ) from exc
        except Exception as exc:  # each file system has its own
            said = " ".join(str(exc).split())[:500]
            raise StoreUnavailable(
                f"{self.url} fails ({type(exc).__name__}: {said}): check that it can be reached "
                "from here, and the credentials",
                store=self.url,
            ) from exc


class FsspecBlobs:
    keeps_holds = False

    def __init__(
        self,
        folder: _Folder,
        threads: Threads,
        *,
        skew: float,
        ahead: float,
        clock: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._threads = threads
        self._skew = skew
        self._ahead = ahead
        self._clock = clock

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        check_holder(holder)
        check_ttl(ttl)
        asked = list(dict.fromkeys(digests))
        there = self._threads.each(lambda digest: self._keep(digest, ttl), asked)
        return {digest for digest, is_there in zip(asked, there, strict=True) if not is_there}

    def release(
        self,
        digests: Sequence[Digest],  # noqa: ARG002
        holder: str,
        grace: float,  # noqa: ARG002
    ) -> None:
        """Do nothing: a blob lives as long as was ever asked for."""
        check_holder(holder)

    def holders(self, digest: Digest) -> dict[str, float]:  # noqa: ARG002
        return {}

    def put(
        self,
        blobs: Mapping[Digest, Parts],
        ttl: float,
        *,
        value_size: int | None = None,  # noqa: ARG002
    ) -> None:
        check_ttl(ttl)
        self._threads.each(lambda blob: self._put(*blob, ttl), blobs.items())

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        check_limit(limit)
        window = max(WINDOW // max(limit, 1), 1)
        return self._threads.ahead(lambda digest: self._get(digest, limit), digests, window)

    def delete(self, digests: Iterable[Digest]) -> None:
        self._threads.each(self._delete, list(digests))

    def scan(self) -> Iterator[BlobInfo]:
        for digest in self._digests():
            mark = self._live(digest)
            if mark is not None:
                yield BlobInfo(digest, mark.size, mark.until - self._clock())

    def sweep(self, *, dry_run: bool) -> Iterator[Swept]:
        """Remove what expired, and what killed writers left, unless *dry_run*; yield it."""
        digests = list(self._digests())
        for at in range(0, len(digests), _SWEPT_AT_ONCE):
            some = digests[at : at + _SWEPT_AT_ONCE]
            found = self._threads.each(lambda digest: self._sweep(digest, dry_run=dry_run), some)
            yield from filter(None, found)

    def _keep(self, digest: Digest, ttl: float) -> bool:
        mark = self._live(digest)
        if mark is None:
            return False
        if mark.until < self._clock() + check_ttl(ttl) + self._skew:
            self._mark(digest, mark.name, mark.size, ttl)
        return True

    def _put(self, digest: Digest, parts: Parts, ttl: float) -> None:
        if self._keep(digest, ttl):
            return
        content = b"".join(parts)  # fsspec takes bytes
        name = os.urandom(16).hex()
        self._folder.write(content, _file(digest), name)
        self._mark(digest, name, len(content), ttl)

    def _mark(self, digest: Digest, name: str, size: int, ttl: float) -> None:
        life = check_ttl(check_ttl(ttl) * (1 + self._ahead)) + self._skew
        until = math.ceil((self._clock() + life) * 1000)
        self._folder.write(b"", _file(digest), f"{name}.{until}.{size}")

    def _get(self, digest: Digest, limit: int) -> Buffer:
        url = self._folder.url
        mark = self._live(digest)
        if mark is not None:
            if mark.size > limit:
                raise IntegrityError(
                    f"{digest} in {url} has {mark.size} bytes, over the limit of {limit}",
                    digest=digest,
                    store=url,
                )
            with suppress(FileNotFoundError):
                content = self._folder.read(_file(digest), mark.name)
                if len(content) != mark.size:
                    raise StoreUnavailable(
                        f"{url} gave {len(content)} of {mark.size} bytes of {digest}",
                        digest=digest,
                        store=url,
                    )
                return content
        raise BlobMissing(
            f"{url} has no {digest}: it expired or was deleted", digest=digest, store=url
        )

    def _delete(self, digest: Digest) -> None:
        names = self._folder.names(_file(digest))
        for name in sorted(names, key=len, reverse=True):  # the marks first
            self._folder.remove(_file(digest), name)
        if names:
            self._folder.remove_folder(_file(digest))

    def _sweep(self, digest: Digest, *, dry_run: bool) -> Swept | None:
        """Remove a blob if it is over, file by file: one that was stored again stays."""
        names = self._folder.names(_file(digest))
        marks = _marks(names)
        now = self._clock()
        last = max(marks, key=lambda mark: mark.until, default=None)
        if last is None or last.until > now - self._skew:
            return None
        swept = Swept("blob", digest, last.size, f"expired {now - last.until:.0f} s ago")
        if dry_run:
            return swept
        ended = {mark.name for mark in marks}
        for name in sorted(names, key=len, reverse=True):
            if name.partition(".")[0] in ended:
                self._folder.remove(_file(digest), name)
        self._folder.remove_folder(_file(digest))
        return swept

    def _live(self, digest: Digest) -> _Mark | None:
        marks = _marks(self._folder.names(_file(digest)))
        mark = max(marks, key=lambda mark: mark.until, default=None)
        return mark if mark is not None and mark.until > self._clock() else None

    def _digests(self) -> Iterator[Digest]:
        for name in self._folder.names():
            if _NAME.fullmatch(name):
                yield parse_digest(name.replace("-", ":"))


class NoPointers:
    """Refuses every call, and says what to do."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self, name: str) -> bytes | None:  # noqa: ARG002
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


def _marks(names: Iterable[str]) -> list[_Mark]:
    """Return the marks whose content is there."""
    listed = set(names)
    found = filter(None, map(_MARK.fullmatch, listed))
    return [
        _Mark(match[1], int(match[2]) / 1000, int(match[3]))
        for match in found
        if match[1] in listed
    ]


def _file(digest: Digest) -> str:
    name = digest.replace(":", "-")
    if not _NAME.fullmatch(name):
        raise StoreError(f"not a content digest: {digest[:100]!r}")
    return name


def _as_it_is(value: Any) -> Any:
    return value


def _login(url: StoreURL) -> str:
    words = [quote(word, safe="") for word in (url.username, url.password) if word is not None]
    return ":".join(words) + "@" if words else ""


def _hosts(url: StoreURL) -> str:
    return ",".join(host if port is None else f"{host}:{port}" for host, port in url.hosts)
