"""Blobs as files that are never written twice, each beside marks with its expiry."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from datetime import timezone
from typing import Any

from offload.digest import Buffer, Digest
from offload.errors import OffloadError, StoreError, StoreUnavailable
from offload.stores.bases import ExpiringBlobs, blob_digest, blob_name
from offload.stores.capabilities import BlobPeek
from offload.stores.checks import check_ttl, missing_error, size_error
from offload.stores.processes import PerProcess, Threads
from offload.stores.protocols import BlobInfo, Parts, SweepItem

CLOCK = re.compile(r"clock-[0-9a-f]{32}", re.ASCII)
"""Pattern of the names of files that are written to read the file system's time."""
FileSystem = Any  # fsspec has no type hints


class Folder:
    """A folder in *root* of a file system; *connect* opens it once per process.

    Converts errors to StoreError, except FileNotFoundError and NotADirectoryError.

    Args:
        url: the store's URL, for errors.
        clock: returns seconds since 1970. Any other than `time.time` also replaces the file
            system's clock.
    """

    def __init__(
        self, connect: Callable[[], FileSystem], url: str, root: str, *, clock: Callable[[], float]
    ) -> None:
        self.url = url
        self.clock = clock
        self._root = root.rstrip("/")
        self._name = "blobs"
        self._has_clock = clock is time.time
        self._systems = PerProcess(connect)

    def beside(self, name: str) -> Folder:
        """Return another folder in the same root."""
        other = copy(self)
        other._name = name
        return other

    def path(self, *names: str) -> str:
        return "/".join((self._root, self._name, *names))

    def names(self, *folder: str) -> list[str]:
        """Return the names in a folder; empty if it doesn't exist."""
        return [_last(name) for name in self._list(*folder, detail=False)]

    def sizes(self, *folder: str) -> dict[str, int | None]:
        """Return the names in a folder and their sizes in bytes; None if unknown."""
        return {_last(e["name"]): e.get("size") for e in self._list(*folder, detail=True)}

    def _list(self, *folder: str, detail: bool) -> list[Any]:
        path = self.path(*folder)
        try:
            with self._errors() as system:
                system.invalidate_cache(path)
                return list(system.ls(path, detail=detail))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def write(self, content: bytes, *names: str) -> None:
        with self._errors() as system:
            system.makedirs(self.path(*names[:-1]), exist_ok=True)
            system.pipe_file(self.path(*names), content)

    def read(self, *names: str, size: int | None = None) -> bytes:
        """Return a file's content, or its first *size* bytes.

        Raises FileNotFoundError if it doesn't exist or is a folder.
        """
        with self._errors() as system:
            part = {} if size is None else {"start": 0, "end": size}
            try:
                content: bytes = system.cat_file(self.path(*names), **part)
            except IsADirectoryError as exc:
                raise FileNotFoundError(*exc.args) from exc
            return content

    def remove(self, *names: str) -> None:
        with suppress(FileNotFoundError), self._errors() as system:
            system.rm_file(self.path(*names))

    def time(self) -> float | None:
        """Return the file system's time, as the time of a file just written; None if unknown."""
        if not self._has_clock:
            return self.clock()
        name = f"clock-{os.urandom(16).hex()}"
        self.write(b"", name)
        try:
            with self._errors() as system:
                try:
                    stamp = system.modified(self.path(name))
                    # Assume UTC if there is no time zone; at worst, the sweep is late.
                    return float(
                        (stamp if stamp.tzinfo else stamp.replace(tzinfo=timezone.utc)).timestamp()
                    )
                except (NotImplementedError, AttributeError, LookupError, TypeError, ValueError):
                    return None
        except FileNotFoundError:
            return None
        finally:
            self.remove(name)

    def remove_folder(self, *names: str) -> None:
        """Delete a folder if it is empty, and if the file system has folders."""
        with suppress(StoreError, FileNotFoundError), self._errors() as system:
            system.rmdir(self.path(*names))

    @contextmanager
    def _errors(self) -> Iterator[FileSystem]:
        try:
            yield self._systems.get()
        except (FileNotFoundError, NotADirectoryError, OffloadError):
            raise
        except PermissionError as exc:
            raise StoreError(
                f"{self.url} refuses ({exc}): check the credentials and rights", store=self.url
            ) from exc
        except Exception as exc:  # each file system raises its own
            said = " ".join(str(exc).split())[:500]
            raise StoreUnavailable(
                f"{self.url} fails ({type(exc).__name__}: {said}): check that it can be reached "
                "from here, and the credentials",
                store=self.url,
            ) from exc


def _last(path: object) -> str:
    return str(path).rstrip("/").rpartition("/")[2]


_SWEPT_AT_ONCE = 256
_MARK = re.compile(r"([0-9a-f]{32})\.([0-9]{1,15})\.([0-9]{1,15})", re.ASCII)
_OWN = re.compile(r"[0-9a-f]{32}(\.[0-9]{1,15}\.[0-9]{1,15})?", re.ASCII)


@dataclass(frozen=True)
class _Mark:
    """A complete copy of a blob, and its expiry."""

    name: str
    until: float
    size: int


class FsspecBlobs(ExpiringBlobs):
    def __init__(self, folder: Folder, threads: Threads, *, skew: float, ahead: float) -> None:
        super().__init__(threads)
        self.folder = folder
        self._skew = skew
        self._ahead = ahead

    def put(
        self, blobs: Mapping[Digest, Parts], ttl: float, *, value_size: int | None = None
    ) -> None:
        check_ttl(ttl)
        self._threads.each(lambda blob: self._put(*blob, ttl), blobs.items())

    def delete(self, digests: Iterable[Digest]) -> None:
        self._threads.each(self._delete, list(digests))

    def scan(self) -> Iterator[BlobInfo]:
        for digest in self._digests():
            mark = self._live(digest)
            if mark is not None:
                yield BlobInfo(digest, mark.size, mark.until - self.folder.clock())

    def find(self, prefix: str) -> Iterator[Digest]:
        return (digest for digest in self._digests() if digest.startswith(prefix))

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Delete what has expired and what killed writers left, unless *dry_run*; yield it."""
        digests = list(self._digests())
        ahead = self._seconds_ahead(dry_run=dry_run) if digests else 0.0
        for at in range(0, len(digests), _SWEPT_AT_ONCE):
            some = digests[at : at + _SWEPT_AT_ONCE]
            now = self.folder.clock() - ahead
            found = self._threads.each(
                lambda digest, now=now: self._sweep(digest, now, dry_run=dry_run),  # type: ignore[misc]
                some,
            )
            yield from filter(None, found)

    def _seconds_ahead(self, *, dry_run: bool) -> float:
        """Return by how many seconds this clock is ahead of the file system's; 0 if unknown."""
        try:
            its_time = self.folder.time()
        except StoreError:
            if not dry_run:
                raise
            its_time = None  # a client with read access can still do a dry run
        return 0.0 if its_time is None else max(0.0, self.folder.clock() - its_time)

    def _extend_one(self, digest: Digest, ttl: float) -> bool:
        mark = self._live(digest)
        if mark is None:
            return False
        if mark.until < self.folder.clock() + check_ttl(ttl) + self._skew:
            self._mark(digest, mark.name, mark.size, ttl)
        return True

    def _put(self, digest: Digest, parts: Parts, ttl: float) -> None:
        if self._extend_one(digest, ttl):
            return
        content = b"".join(parts)  # fsspec accepts only bytes
        name = os.urandom(16).hex()
        self.folder.write(content, self._name(digest), name)
        self._mark(digest, name, len(content), ttl)

    def _mark(self, digest: Digest, name: str, size: int, ttl: float) -> None:
        life = check_ttl(check_ttl(ttl) * (1 + self._ahead)) + self._skew
        until = math.ceil((self.folder.clock() + life) * 1000)
        self.folder.write(b"", self._name(digest), f"{name}.{until}.{size}")

    def _get_one(self, digest: Digest, limit: int) -> Buffer:
        url = self.folder.url
        mark = self._live(digest)
        if mark is not None:
            if mark.size > limit:
                raise size_error(digest, url, limit)
            with suppress(FileNotFoundError):
                content = self.folder.read(self._name(digest), mark.name)
                if len(content) != mark.size:
                    raise StoreUnavailable(
                        f"{url} returned {len(content)} of {mark.size} bytes of {digest}",
                        digest=digest,
                        store=url,
                    )
                return content
        raise missing_error(digest, url)

    def _peek_one(self, digest: Digest, size: int) -> BlobPeek | None:
        mark = self._live(digest)
        if mark is None:
            return None
        size = min(size, mark.size)
        try:
            prefix = self.folder.read(self._name(digest), mark.name, size=size)
        except FileNotFoundError:
            return None
        return BlobPeek(mark.size, mark.until - self.folder.clock(), prefix[:size])

    def _delete(self, digest: Digest) -> None:
        names = list(filter(_OWN.fullmatch, self.folder.names(self._name(digest))))
        # Marks have longer names: delete them first.
        for name in sorted(names, key=len, reverse=True):
            self.folder.remove(self._name(digest), name)
        if names:
            self.folder.remove_folder(self._name(digest))

    def _sweep(self, digest: Digest, now: float, *, dry_run: bool) -> SweepItem | None:
        """Delete an expired blob file by file, unless it is stored again meanwhile."""
        names = self.folder.names(self._name(digest))
        marks = _marks(names)
        last = max(marks, key=lambda mark: mark.until, default=None)
        if last is None or last.until > now - self._skew:
            return None
        swept = SweepItem("blob", digest, last.size, f"expired {now - last.until:.0f} s ago")
        if dry_run:
            return swept
        expired = {mark.name for mark in marks}
        for name in sorted(filter(_OWN.fullmatch, names), key=len, reverse=True):
            if name.partition(".")[0] in expired:
                self.folder.remove(self._name(digest), name)
        self.folder.remove_folder(self._name(digest))
        return swept

    def _live(self, digest: Digest) -> _Mark | None:
        marks = _marks(self.folder.names(self._name(digest)))
        mark = max(marks, key=lambda mark: mark.until, default=None)
        return mark if mark is not None and mark.until > self.folder.clock() else None

    def _digests(self) -> Iterator[Digest]:
        yield from filter(None, map(blob_digest, self.folder.names()))

    def _name(self, digest: Digest) -> str:
        return blob_name(digest, self.folder.url)


def _marks(names: Iterable[str]) -> list[_Mark]:
    """Return the marks for which the content exists."""
    listed = set(names)
    found = filter(None, map(_MARK.fullmatch, listed))
    return [
        _Mark(match[1], int(match[2]) / 1000, int(match[3]))
        for match in found
        if match[1] in listed
    ]
