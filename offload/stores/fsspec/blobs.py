"""Blobs as files that are never written twice, beside marks of their lives."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from offload.digest import Buffer, Digest
from offload.errors import StoreError, StoreUnavailable
from offload.stores.capabilities import BlobPeek
from offload.stores.checks import check_ttl, missing_error, size_error
from offload.stores.expiry import ExpiringBlobs, blob_digest, blob_name
from offload.stores.fsspec.folder import Folder
from offload.stores.processes import Threads
from offload.stores.protocols import BlobInfo, Parts, SweepItem

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
        self,
        blobs: Mapping[Digest, Parts],
        ttl: float,
        *,
        value_size: int | None = None,  # noqa: ARG002
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
        """Delete what expired, and what killed writers left, unless *dry_run*; yield it."""
        digests = list(self._digests())
        ahead = self._is_ahead(dry_run=dry_run) if digests else 0.0
        for at in range(0, len(digests), _SWEPT_AT_ONCE):
            some = digests[at : at + _SWEPT_AT_ONCE]
            now = self.folder.clock() - ahead
            found = self._threads.each(
                lambda digest, now=now: self._sweep(digest, now, dry_run=dry_run),  # type: ignore[misc]
                some,
            )
            yield from filter(None, found)

    def _is_ahead(self, *, dry_run: bool) -> float:
        """Return by how many seconds our clock is ahead of the file system's, if known."""
        try:
            its_time = self.folder.time()
        except StoreError:
            if not dry_run:
                raise
            its_time = None  # a client that may only read can still sweep dry
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
        content = b"".join(parts)  # fsspec takes bytes
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
        for name in sorted(names, key=len, reverse=True):  # the marks first
            self.folder.remove(self._name(digest), name)
        if names:
            self.folder.remove_folder(self._name(digest))

    def _sweep(self, digest: Digest, now: float, *, dry_run: bool) -> SweepItem | None:
        """Delete an expired blob file by file; one that was stored again stays."""
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
    """Return the marks whose content exists."""
    listed = set(names)
    found = filter(None, map(_MARK.fullmatch, listed))
    return [
        _Mark(match[1], int(match[2]) / 1000, int(match[3]))
        for match in found
        if match[1] in listed
    ]
