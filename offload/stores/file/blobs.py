"""Blobs as files that are written once."""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from stat import S_ISREG

from offload.digest import Buffer, Digest
from offload.errors import StoreUnavailable
from offload.stores.bases import BLOB_NAME, ExpiringBlobs, blob_digest, blob_name
from offload.stores.capabilities import BlobPeek, Named
from offload.stores.checks import check_ttl, missing_error, size_error
from offload.stores.file.disk import Disk
from offload.stores.processes import Threads
from offload.stores.protocols import FOREVER, BlobInfo, Parts, SweepItem

STRIPE = re.compile(r"[0-9a-f]{2}", re.ASCII)
"""Names of the folders that contain blobs."""
_STRIPES = [f"{number:02x}" for number in range(256)]
_FAR = 30 * 365 * 86400.0  # seconds; only a blob that was held FOREVER may live longer
_ASKED = 50_000  # blobs to check in one call whether something names them
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class FileBlobs(ExpiringBlobs):
    """Blobs in 256 folders. A file's mtime is the time when the blob expires.

    Storing a blob also deletes expired ones (of at most one folder a second), and `sweep` deletes
    all of them. A blob is deleted, or reported missing, only if it has expired by the file
    system's clock as well as by this host's.

    A blob that was held `FOREVER` has a mark in another folder. The mark's mtime is the time after
    which `sweep_unnamed` may delete both if nothing names the blob: `unnamed` seconds after the
    last such hold, or the end of any longer hold.
    """

    def __init__(self, disk: Disk, skew: float, unnamed: float) -> None:
        super().__init__(Threads(1, "offload-file"))
        self._disk = disk
        self._skew = skew
        self._unnamed = unnamed
        self._turn = itertools.cycle(_STRIPES)
        for _ in range(random.randrange(256)):  # noqa: S311 (each process starts at another folder)
            next(self._turn)
        self._next_turn = 0.0

    def put(
        self, blobs: Mapping[Digest, Parts], ttl: float, *, value_size: int | None = None
    ) -> None:
        check_ttl(ttl)
        with self._disk.errors():
            changed = [self._put(digest, parts, ttl) for digest, parts in blobs.items()]
            self._disk.flush(folder for folders in changed for folder in folders)
            with suppress(OSError, StoreUnavailable):
                self._sweep_some()

    def delete(self, digests: Iterable[Digest]) -> None:
        with self._disk.errors():
            for digest in digests:
                with self._disk.lock(_stripe(digest)), suppress(*_MISSING):
                    self._mark(digest).unlink(missing_ok=True)
                    self._path(digest).unlink()

    def scan(self) -> Iterator[BlobInfo]:
        for stripe in _STRIPES:
            with self._disk.errors():
                now = self._disk.clock()
                found = list(self._stats(stripe))
            for digest, stat in found:
                if stat.st_mtime > now:
                    yield BlobInfo(digest, stat.st_size, stat.st_mtime - now)

    def find(self, prefix: str) -> Iterator[Digest]:
        for stripe in _STRIPES:
            if f"b3:{stripe}".startswith(prefix[:5]):
                with self._disk.errors():
                    found = [digest for digest, _ in self._stats(stripe)]
                yield from (digest for digest in found if digest.startswith(prefix))

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Delete all expired blobs, unless *dry_run*, and yield them."""
        for stripe in _STRIPES:
            with self._disk.errors():
                found = self._sweep(stripe, dry_run=dry_run)
            yield from found

    def sweep_unnamed(self, named: Named, *, dry_run: bool) -> Iterator[SweepItem]:
        """Delete blobs that were held `FOREVER` and are no longer named; yield them."""
        rest = self._unneeded()
        while some := dict(itertools.islice(rest, _ASKED)):
            # The order matters: a writer that names one of these from now on has held it first.
            stay = named(some.keys())
            for digest, now in some.items():
                with self._disk.errors():
                    swept = None if digest in stay else self._drop(digest, now, dry_run=dry_run)
                if swept is not None:
                    yield swept

    def _put(self, digest: Digest, parts: Parts, ttl: float) -> list[Path]:
        """Store a blob; return the folders to flush."""
        if self._extend(digest, ttl):
            return []
        aside = self._disk.write_aside(parts)
        path = self._path(digest)
        with self._disk.lock(_stripe(digest)):
            # Another process may have stored it meanwhile. Either file will do, but the longer
            # life must be kept.
            expiry = self._expiry(path)
            if ttl == FOREVER:
                self._set_mark(digest, ttl, expiry)
            _set_expiry(aside, max(self._until(ttl), expiry))
            self._disk.move(aside, path)
        return [path.parent, path.parent.parent]

    def _get_one(self, digest: Digest, limit: int) -> Buffer:
        with self._disk.errors(), suppress(*_MISSING), self._path(digest).open("rb") as file:
            stat = os.fstat(file.fileno())
            if self._lives(stat.st_mtime):
                if stat.st_size > limit:
                    raise size_error(digest, self._disk.url, limit)
                return file.read(stat.st_size)
        raise missing_error(digest, self._disk.url)

    def _peek_one(self, digest: Digest, size: int) -> BlobPeek | None:
        with self._disk.errors(), suppress(*_MISSING), self._path(digest).open("rb") as file:
            stat = os.fstat(file.fileno())
            if self._lives(stat.st_mtime):
                left = stat.st_mtime - self._disk.clock()
                return BlobPeek(stat.st_size, left, file.read(size))
        return None

    def _lives(self, until: float) -> bool:
        """Return whether a blob with this expiry is live; 0 means that it doesn't exist."""
        return until > self._disk.clock() or (until > 0.0 and until > self._disk.sure_time())

    def _extend_one(self, digest: Digest, ttl: float) -> bool:
        with self._disk.errors():
            return self._extend(digest, ttl)

    def _extend(self, digest: Digest, ttl: float) -> bool:
        """Keep a blob for *ttl* seconds from now if it exists; return whether it does."""
        path, until = self._path(digest), self._until(ttl)
        expiry = self._expiry(path)
        if expiry >= until and not self._may_be_marked(expiry):
            return True  # other processes delete only expired blobs
        if not self._lives(expiry):
            return False
        with self._disk.lock(_stripe(digest)):
            expiry = self._expiry(path)
            if not self._lives(expiry):
                return False
            if ttl == FOREVER or (self._may_be_marked(expiry) and self._mark(digest).exists()):
                self._set_mark(digest, ttl, expiry)
            if expiry < until:
                self._live_until(path, until)
            return True

    # -- marks of blobs that were held FOREVER

    def _may_be_marked(self, expiry: float) -> bool:
        return expiry > self._disk.clock() + _FAR

    def _set_mark(self, digest: Digest, ttl: float, expiry: float) -> None:
        """Create or extend the mark of a blob with this *expiry*; the caller holds the lock."""
        path = self._mark(digest)
        until = self._until(self._unnamed if ttl == FOREVER else ttl)
        marked = self._expiry(path)
        if not marked:
            aside = self._disk.write_aside(())
            _set_expiry(aside, max(until, expiry))
            self._disk.move(aside, path)
            self._disk.flush((path.parent, path.parent.parent))
        elif marked < until:
            self._live_until(path, until)

    def _unneeded(self) -> Iterator[tuple[Digest, float]]:
        """Yield the blobs whose marks have expired, with a time at which they had."""
        for stripe in _STRIPES:
            with self._disk.errors():
                found = list(self._stats(stripe, "kept"))
                now = self._disk.sure_time() if found else 0.0
            yield from ((digest, now) for digest, stat in found if stat.st_mtime <= now)

    def _drop(self, digest: Digest, now: float, *, dry_run: bool) -> SweepItem | None:
        """Delete a blob and its mark if the mark had expired at *now* and wasn't extended."""
        path, mark = self._path(digest), self._mark(digest)
        with nullcontext() if dry_run else self._disk.lock(_stripe(digest)):
            if not 0.0 < self._expiry(mark) <= now:  # held again, or deleted
                return None
            expiry = self._expiry(path)
            is_kept = self._may_be_marked(expiry)  # otherwise it expires by itself, or is missing
            size = path.stat().st_size if expiry else 0
            if not dry_run:
                if is_kept:
                    path.unlink()
                mark.unlink()
        return SweepItem("blob", digest, size, "nothing names it") if is_kept else None

    def _mark(self, digest: Digest) -> Path:
        path = self._path(digest)
        return self._disk.root / "kept" / path.parent.name / path.name

    def _live_until(self, path: Path, until: float) -> None:
        try:
            _set_expiry(path, until)
        except PermissionError:
            # Only its owner may set a file's time. Another user with write access to the folder
            # replaces the file by a copy; the caller holds the lock.
            aside = self._disk.write_aside((path.read_bytes(),))
            _set_expiry(aside, until)
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
        name = blob_name(digest, self._disk.url)
        return self._disk.root / "blobs" / _stripe(digest) / name

    def _stats(self, stripe: str, folder: str = "blobs") -> Iterator[tuple[Digest, os.stat_result]]:
        for entry in self._disk.files(self._disk.root / folder / stripe, BLOB_NAME):
            digest = blob_digest(entry.name)
            if digest is not None:
                with suppress(FileNotFoundError):
                    yield digest, entry.stat()

    def _sweep(self, stripe: str, *, dry_run: bool = False) -> list[SweepItem]:
        if not self._expired(stripe, self._disk.clock()):
            return []
        now = self._disk.sure_time()
        expired = self._expired(stripe, now)
        if not dry_run and expired:
            with self._disk.lock(stripe):
                expired = {digest: i for digest, i in expired.items() if self._remove(digest, now)}
        return list(expired.values())

    def _expired(self, stripe: str, now: float) -> dict[Digest, SweepItem]:
        return {
            digest: SweepItem(
                "blob", digest, stat.st_size, f"expired {now - stat.st_mtime:.0f} s ago"
            )
            for digest, stat in self._stats(stripe)
            if stat.st_mtime <= now
        }

    def _remove(self, digest: Digest, now: float) -> bool:
        path = self._path(digest)
        if not 0.0 < self._expiry(path) <= now:  # stored again, or deleted
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


def _set_expiry(path: Path, until: float) -> None:
    nanoseconds = int(until * 1e9)
    os.utime(path, ns=(nanoseconds, nanoseconds))
