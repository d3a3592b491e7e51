"""Blobs as files that are never written twice, beside marks of their lives."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from offload.digest import Buffer, Digest, parse_digest
from offload.errors import BlobMissing, IntegrityError, StoreError, StoreUnavailable
from offload.stores.capabilities import BlobPeek
from offload.stores.checks import check_holder, check_limit, check_ttl
from offload.stores.fsspec.folder import CLOCK, Folder
from offload.stores.protocols import PUT, BlobInfo, Parts, SweepItem
from offload.stores.threads import Threads

__all__ = ("FsspecBlobs",)

WINDOW = 32 << 20  # bytes read ahead
_SWEPT_AT_ONCE = 256
_NAME = re.compile(r"b3-[0-9a-f]{64}", re.ASCII)
_MARK = re.compile(r"([0-9a-f]{32})\.([0-9]{1,15})\.([0-9]{1,15})", re.ASCII)
_OWN = re.compile(r"[0-9a-f]{32}(\.[0-9]{1,15}\.[0-9]{1,15})?", re.ASCII)


@dataclass(frozen=True)
class _Mark:
    """One content of a blob that is whole, and until when it lives."""

    name: str
    until: float
    size: int


class FsspecBlobs:
    tracks_holds = False

    def __init__(
        self,
        folder: Folder,
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
        self._its_clock = folder.time if clock is time.time else clock

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

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        check_limit(size)
        return self._threads.each(lambda digest: self._look(digest, size), digests)

    def _look(self, digest: Digest, size: int) -> BlobPeek | None:
        mark = self._live(digest)
        if mark is None:
            return None
        try:
            begin = self._folder.read(_file(digest), mark.name, size=min(size, mark.size))
        except FileNotFoundError:
            return None
        return BlobPeek(mark.size, mark.until - self._clock(), begin[:size])

    def find(self, begin: str) -> Iterator[Digest]:
        return (digest for digest in self._digests() if digest.startswith(begin))

    def strays(self) -> list[str]:
        """Return the names beside the blobs that are not the store's own."""
        return [f"blobs/{name}" for name in self._folder.names() if not _is_own(name)]

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Remove what expired, and what killed writers left, unless *dry_run*; yield it."""
        digests = list(self._digests())
        ahead = self._is_ahead(dry_run=dry_run) if digests else 0.0
        for at in range(0, len(digests), _SWEPT_AT_ONCE):
            some = digests[at : at + _SWEPT_AT_ONCE]
            now = self._clock() - ahead
            found = self._threads.each(
                lambda digest, now=now: self._sweep(digest, now, dry_run=dry_run),  # type: ignore[misc]
                some,
            )
            yield from filter(None, found)

    def _is_ahead(self, *, dry_run: bool) -> float:
        """Return by how many seconds our clock is ahead of the file system's, if that tells."""
        try:
            told = self._its_clock()
        except StoreError:
            if not dry_run:
                raise
            told = None  # who may only look, looks
        return 0.0 if told is None else max(0.0, self._clock() - told)

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
        names = list(filter(_OWN.fullmatch, self._folder.names(_file(digest))))
        for name in sorted(names, key=len, reverse=True):  # the marks first
            self._folder.remove(_file(digest), name)
        if names:
            self._folder.remove_folder(_file(digest))

    def _sweep(self, digest: Digest, now: float, *, dry_run: bool) -> SweepItem | None:
        """Remove a blob if it is over, file by file: one that was stored again stays."""
        names = self._folder.names(_file(digest))
        marks = _marks(names)
        last = max(marks, key=lambda mark: mark.until, default=None)
        if last is None or last.until > now - self._skew:
            return None
        swept = SweepItem("blob", digest, last.size, f"expired {now - last.until:.0f} s ago")
        if dry_run:
            return swept
        ended = {mark.name for mark in marks}
        for name in sorted(filter(_OWN.fullmatch, names), key=len, reverse=True):
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


def _is_own(name: str) -> bool:
    return bool(_NAME.fullmatch(name) or CLOCK.fullmatch(name))


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
