"""A file store's folder: writing, locking, time, and errors."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from offload.digest import Buffer
from offload.errors import StoreError, StoreUnavailable
from offload.stores.protocols import SweepItem

Clock = Callable[[], float]

_ABANDONED = 86400.0  # seconds after which a file in tmp/ must be a killed writer's
_TEMPORARY = {
    errno.ENOSPC: "its disk is full: make room, or lower offload_retention",
    errno.EDQUOT: "its quota is used up: make room, or lower offload_retention",
    errno.EMFILE: "this process has too many open files (ulimit -n)",
    errno.ENFILE: "this machine has too many open files",
    errno.EIO: "its disk fails to read or write",
    errno.ESTALE: "the file server's export has changed",
    errno.ETIMEDOUT: "the file server is unavailable",
    errno.ENOLCK: "the file server grants no lock now",
    errno.EBUSY: "it is busy",
    errno.EAGAIN: "it is busy",
}
_SHARED = {errno.EACCES, errno.EPERM}
ASIDE = re.compile(r"[0-9A-Za-z-]+", re.ASCII)
"""Pattern of the names of files in ``tmp/``."""
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}  # then nothing can be deleted, either


class Disk:
    """Writes, locks, and deletes the files in one folder.

    Args:
        root: the folder; the first write creates it.
        url: the store's URL, for errors.
        clock: returns seconds since 1970. Any other than `time.time` also replaces the file
            system's clock.
        lock_timeout: seconds to wait while another process changes the same file.
        fsync: whether writes must survive a power failure.
        mode: permissions of all files, regardless of the umask; folders also get execute
            permissions, and keep the setgid bit. None makes them private to their owner.
    """

    def __init__(
        self,
        root: Path,
        url: str,
        *,
        clock: Clock,
        lock_timeout: float,
        fsync: bool,
        mode: int | None = None,
    ) -> None:
        self.root = root
        self.url = url
        self.clock = clock
        self.shared_clock = self._touch if clock is time.time else clock
        self._lock_timeout = lock_timeout
        self._fsync = fsync
        self._mode = mode

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Convert the operating system's errors in this block to a StoreError."""
        try:
            yield
        except OSError as exc:
            said = f"{exc.strerror or exc}: {exc.filename}" if exc.filename else str(exc)
            meaning = _TEMPORARY.get(exc.errno or 0)
            if meaning:
                raise StoreUnavailable(f"{self.url}: {meaning} ({said})", store=self.url) from exc
            hint = "check the path, its owner, and its permissions"
            if exc.errno in _SHARED and self._mode is None:
                hint += "; if several users share it, add ?mode=0660 to its URL"
            raise StoreError(f"{self.url} cannot be used ({said}): {hint}", store=self.url) from exc

    def write_aside(self, parts: Iterable[Buffer], *, fsync: bool = True) -> Path:
        """Write a new file in ``tmp/`` and return its path; on failure, delete it.

        Args:
            fsync: flush it to disk, if the store does that at all.
        """
        path = self.root / "tmp" / f"{os.getpid()}-{uuid4().hex}"
        self._make(path.parent)
        try:
            with open(path, "xb", opener=self._open) as file:
                file.writelines(parts)
                file.flush()
                if self._fsync and fsync:
                    os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def move(self, aside: Path, path: Path) -> None:
        """Move a file from `write_aside` to *path*, replacing any file there."""
        self._make(path.parent)
        try:
            aside.replace(path)
        except FileNotFoundError:
            # NFS may lose the reply to a successful rename, and repeat the rename.
            if not path.exists():
                raise
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def flush(self, folders: Iterable[Path]) -> None:
        """Make new and deleted names in these folders survive a power failure."""
        for folder in set(folders) if self._fsync else ():
            with suppress(FileNotFoundError):
                number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(number)
                finally:
                    os.close(number)

    @contextmanager
    def lock(self, stripe: str) -> Iterator[None]:
        """Hold the lock for all files in the folders named *stripe*.

        Raises StoreUnavailable if another process holds it for longer than the timeout. Neither
        other threads nor a child forked in the meantime share the lock.
        """
        path = self.root / "locks" / stripe
        self._make(path.parent)
        deadline = time.monotonic() + self._lock_timeout
        while True:
            number = self._open(path, os.O_RDWR | os.O_CREAT)
            try:
                if self._take(number, path):
                    try:
                        yield
                    finally:
                        # Unlock explicitly: a child forked meanwhile also has the file open.
                        fcntl.flock(number, fcntl.LOCK_UN)
                    return
            finally:
                os.close(number)
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"{self.url}: another process has held {path} for {self._lock_timeout:g} s",
                    store=self.url,
                )
            time.sleep(random.uniform(0.0005, 0.003))  # noqa: S311 (not for secrets)

    def sure_time(self) -> float:
        """Return the earlier of this host's and the file system's time, in seconds since 1970.

        Deletion by age uses it, so that a clock that is ahead deletes nothing early.
        """
        return min(self.clock(), self.shared_clock())

    def _touch(self) -> float:
        """Return the file system's time, by touching a folder, which a file server stamps itself.

        This needs no disk space, because a sweep must work on a full disk.
        """
        try:
            os.utime(self.root)
        except OSError as exc:
            if exc.errno in _READ_ONLY:
                return self.clock()
            raise
        return self.root.stat().st_mtime

    def sweep(self, *, dry_run: bool = False) -> list[SweepItem]:
        """Delete files that killed writers left in ``tmp/``, unless *dry_run*; return them."""
        found = self._left_before(self.clock() - _ABANDONED)
        if found:
            found = self._left_before(self.sure_time() - _ABANDONED)
        for path, _ in found if not dry_run else ():
            path.unlink(missing_ok=True)
        return [
            SweepItem("file", path.name, size, "left by a killed writer") for path, size in found
        ]

    def _left_before(self, moment: float) -> list[tuple[Path, int]]:
        """Return the files in ``tmp/`` that were last written before *moment*, and their sizes."""
        found = []
        for entry in self.files(self.root / "tmp", ASIDE):
            with suppress(FileNotFoundError):
                found_stat = entry.stat()
                if found_stat.st_mtime < moment:
                    found.append((Path(entry.path), found_stat.st_size))
        return found

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """Return a folder's entries; empty if it doesn't exist or isn't a folder."""
        try:
            with os.scandir(folder) as found:
                return list(found)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, folder: Path, name: re.Pattern[str]) -> list[os.DirEntry[str]]:
        """Return the files in a folder whose names match *name*; others aren't the store's."""
        return [e for e in self.entries(folder) if name.fullmatch(e.name) and e.is_file()]

    @staticmethod
    def _take(number: int, path: Path) -> bool:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # Another process may have deleted the file and locked a new one with its name.
        try:
            return os.path.samestat(os.fstat(number), path.stat())
        except FileNotFoundError:
            return False

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            for each in (self.root, *reversed(folder.parents), folder):
                if each == self.root or self.root in each.parents:
                    self._make_one(each)

    def _make_one(self, folder: Path) -> None:
        if self._mode is None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Set permissions before the folder gets its name, so no process sees it without them.
            aside = folder.with_name(f".{folder.name}-{uuid4().hex}")
            aside.mkdir(mode=0o700)
            try:  # the kernel has already set an inherited setgid bit
                setgid = aside.stat().st_mode & stat.S_ISGID
                aside.chmod(self._mode | (self._mode & 0o444) >> 2 | setgid)
                aside.rename(folder)
            except OSError:
                aside.rmdir()
                if not folder.is_dir():  # if it is one, another process created it
                    raise

    def _open(self, path: str | Path, flags: int) -> int:
        if self._mode is None:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)
        if flags & os.O_EXCL:
            number = os.open(path, flags | os.O_CLOEXEC, 0o600)
            os.fchmod(number, self._mode)
            return number
        flags = (flags & ~os.O_CREAT) | os.O_CLOEXEC
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            aside = self.write_aside((), fsync=False)
            try:
                os.link(aside, path)
            except FileExistsError:
                pass
            finally:
                aside.unlink()
            return os.open(path, flags)
