"""Blobs as files that are written once."""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from offload.digest import Buffer, Digest, parse_digest
from offload.errors import BlobMissing, IntegrityError, StoreError, StoreUnavailable
from offload.stores.capabilities import BlobPeek
from offload.stores.checks import check_holder, check_limit, check_ttl
from offload.stores.file.disk import Disk
from offload.stores.protocols import PUT, BlobInfo, Parts, SweepItem

__all__ = ("BLOB", "STRIPE", "FileBlobs")

STRIPE = re.compile(r"[0-9a-f]{2}", re.ASCII)
BLOB = re.compile(r"b3-[0-9a-f]{64}", re.ASCII)
"""Names of a blob's folder and file."""
_STRIPES = [f"{number:02x}" for number in range(256)]
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class FileBlobs:
    """Blobs in 256 folders. A blob's mtime is the moment at which it expires.

    Expired blobs are removed bit by bit as others are stored (one folder of the 256 a
    second at most), or all at once by `sweep`. What is removed, or said not to be there,
    has expired by the file system's clock as well as by this host's.
    """

    tracks_holds = False

    def __init__(self, disk: Disk, skew: float) -> None:
        self._disk = disk
        self._skew = skew
        self._turn = itertools.cycle(_STRIPES)
        for _ in range(random.randrange(256)):  # noqa: S311 (processes begin at different ones)
            next(self._turn)
        self._next_turn = 0.0

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        check_holder(holder)
        until = self._until(ttl)
        with self._disk.errors():
            return {digest for digest in digests if not self._extend(digest, until)}

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
        with self._disk.errors():
            changed = [self._put(digest, parts, ttl) for digest, parts in blobs.items()]
            self._disk.flush(folder for folders in changed for folder in folders)
            with suppress(OSError, StoreUnavailable):
                self._sweep_some()

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        check_limit(limit)
        return (self._get(digest, limit) for digest in digests)

    def delete(self, digests: Iterable[Digest]) -> None:
        with self._disk.errors():
            for digest in digests:
                with self._disk.lock(_stripe(digest)), suppress(*_MISSING):
                    self._path(digest).unlink()

    def scan(self) -> Iterator[BlobInfo]:
        for stripe in _STRIPES:
            with self._disk.errors():
                now = self._disk.clock()
                found = list(self._stats(stripe))
            for digest, stat in found:
                if stat.st_mtime > now:
                    yield BlobInfo(digest, stat.st_size, stat.st_mtime - now)

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        check_limit(size)
        with self._disk.errors():
            return [self._look(digest, size) for digest in digests]

    def _look(self, digest: Digest, size: int) -> BlobPeek | None:
        try:
            with self._path(digest).open("rb") as file:
                stat = os.fstat(file.fileno())
                if not self._lives(stat.st_mtime):
                    return None
                return BlobPeek(stat.st_size, stat.st_mtime - self._disk.clock(), file.read(size))
        except _MISSING:
            return None

    def find(self, begin: str) -> Iterator[Digest]:
        for stripe in _STRIPES:
            if f"b3:{stripe}".startswith(begin[:5]):
                with self._disk.errors():
                    found = [digest for digest, _ in self._stats(stripe)]
                yield from (digest for digest in found if digest.startswith(begin))

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Remove all expired blobs, unless *dry_run*, and yield them."""
        for stripe in _STRIPES:
            with self._disk.errors():
                found = self._sweep(stripe, dry_run=dry_run)
            yield from found

    def _put(self, digest: Digest, parts: Parts, ttl: float) -> list[Path]:
        if self._extend(digest, self._until(ttl)):
            return []
        aside = self._disk.write_aside(parts)
        path = self._path(digest)
        with self._disk.lock(_stripe(digest)):
            # Others may have stored it meanwhile; whose file stays does not matter, but
            # the longer life does.
            until = max(self._until(ttl), self._expiry(path))
            _live_until(aside, until)
            self._disk.move(aside, path)
        return [path.parent, path.parent.parent]

    def _get(self, digest: Digest, limit: int) -> Buffer:
        url = self._disk.url
        with self._disk.errors():
            try:
                with self._path(digest).open("rb") as file:
                    stat = os.fstat(file.fileno())
                    if self._lives(stat.st_mtime):
                        if stat.st_size > limit:
                            raise IntegrityError(
                                f"{digest} in {url} has {stat.st_size} bytes, "
                                f"over the limit of {limit}",
                                digest=digest,
                                store=url,
                            )
                        return file.read(stat.st_size)
            except _MISSING:
                pass
        raise BlobMissing(
            f"{url} has no {digest}: it expired or was deleted", digest=digest, store=url
        )

    def _lives(self, until: float) -> bool:
        """Whether a blob of this expiry (0: there is none) is there."""
        return until > self._disk.clock() or 0.0 < until > self._disk.sure_time()

    def _extend(self, digest: Digest, until: float) -> bool:
        """Whether the blob is there; if so it lives until then at least."""
        path = self._path(digest)
        expiry = self._expiry(path)
        if expiry >= until:
            return True  # only expired blobs are removed behind our back
        if not self._lives(expiry):
            return False
        with self._disk.lock(_stripe(digest)):
            expiry = self._expiry(path)
            if not self._lives(expiry):
                return False
            self._live_until(path, max(expiry, until))
            return True

    def _live_until(self, path: Path, until: float) -> None:
        try:
            _live_until(path, until)
        except PermissionError:
            # Only its owner may set a file's time. Who else may write to the folder replaces it
            # by a copy; the caller has the lock.
            aside = self._disk.write_aside((path.read_bytes(),))
            _live_until(aside, until)
            self._disk.move(aside, path)

    def _expiry(self, path: Path) -> float:
        try:
            found = path.stat()
        except _MISSING:
            return 0.0
        return found.st_mtime if S_ISREG(found.st_mode) else 0.0

    def _until(self, ttl: float) -> float:
        return self._disk.clock() + check_ttl(ttl) + self._skew

    def _path(self, digest: Digest) -> Path:
        name = digest.replace(":", "-")
        if not BLOB.fullmatch(name):
            raise StoreError(f"not a content digest: {digest[:100]!r}", store=self._disk.url)
        return self._disk.root / "blobs" / _stripe(digest) / name

    def _stats(self, stripe: str) -> Iterator[tuple[Digest, os.stat_result]]:
        for entry in self._disk.files(self._disk.root / "blobs" / stripe, BLOB):
            with suppress(FileNotFoundError):
                yield parse_digest(entry.name.replace("-", ":")), entry.stat()

    def _sweep(self, stripe: str, *, dry_run: bool = False) -> list[SweepItem]:
        if not self._expired(stripe, self._disk.clock()):
            return []
        now = self._disk.sure_time()
        expired = self._expired(stripe, now)
        if dry_run or not expired:
            return expired
        with self._disk.lock(stripe):
            return [blob for blob in expired if self._remove(parse_digest(blob.name), now)]

    def _expired(self, stripe: str, now: float) -> list[SweepItem]:
        return [
            SweepItem("blob", digest, stat.st_size, f"expired {now - stat.st_mtime:.0f} s ago")
            for digest, stat in self._stats(stripe)
            if stat.st_mtime <= now
        ]

    def _remove(self, digest: Digest, now: float) -> bool:
        path = self._path(digest)
        if not 0.0 < self._expiry(path) <= now:  # stored again, or gone
            return False
        path.unlink(missing_ok=True)
        return True

    def _sweep_some(self) -> None:
        now = self._disk.clock()
        if now >= self._next_turn:
            self._next_turn = now + 1.0
            stripe = next(self._turn)
            self._sweep(stripe)
            if stripe == _STRIPES[0]:
                self._disk.sweep()


def _stripe(digest: Digest) -> str:
    return digest[3:5]


def _live_until(path: Path, until: float) -> None:
    nanoseconds = int(until * 1e9)
    os.utime(path, ns=(nanoseconds, nanoseconds))
