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

_ABANDONED = 86400.0  # seconds after which a file in tmp/ was left by a killed writer
_PASSING = {
    errno.ENOSPC: "its disk is full: make room, or lower offload_retention",
    errno.EDQUOT: "its quota is used up: make room, or lower offload_retention",
    errno.EMFILE: "this process has too many open files (ulimit -n)",
    errno.ENFILE: "this machine has too many open files",
    errno.EIO: "its disk fails to read or write",
    errno.ESTALE: "the file server has changed below it",
    errno.ETIMEDOUT: "the file server is unavailable",
    errno.ENOLCK: "the file server gives no lock now",
    errno.EBUSY: "it is busy",
    errno.EAGAIN: "it is busy",
}
_SHARED = {errno.EACCES, errno.EPERM}
ASIDE = re.compile(r"[0-9A-Za-z-]+", re.ASCII)
"""Names of files in ``tmp/``."""
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}  # so nothing can be deleted either


class Disk:
    """Change the files in one folder.

    Args:
        root: the folder; created by the first write.
        clock: returns seconds since the epoch. If it isn't `time.time`, it replaces the file
            system's clock as well.
        lock_timeout: seconds to wait for another process's change of the same file.
        fsync: whether writes must survive a power failure.
        mode: permissions of all files, regardless of the umask; folders also get the rights to
            enter them, and keep the setgid bit. None: private to their owner.
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
        """Raise the operating system's errors in this block as a StoreError."""
        try:
            yield
        except OSError as exc:
            said = f"{exc.strerror or exc}: {exc.filename}" if exc.filename else str(exc)
            meaning = _PASSING.get(exc.errno or 0)
            if meaning:
                raise StoreUnavailable(f"{self.url}: {meaning} ({said})", store=self.url) from exc
            hint = "check the path, its owner, and its permissions"
            if exc.errno in _SHARED and self._mode is None:
                hint += "; if several users share it, add ?mode=0660 to its URL"
            raise StoreError(f"{self.url} cannot be used ({said}): {hint}", store=self.url) from exc

    def write_aside(self, parts: Iterable[Buffer], *, fsync: bool = True) -> Path:
        """Write a new file in ``tmp/``, flushed to disk if *fsync*; leave nothing on failure."""
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
        """Move a file of `write_aside` to *path*, replacing any file there."""
        self._make(path.parent)
        try:
            aside.replace(path)
        except FileNotFoundError:
            # NFS: the answer to a successful rename was lost, and the rename was repeated.
            if not path.exists():
                raise
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def flush(self, folders: Iterable[Path]) -> None:
        """Make added and removed names in these folders survive a power failure."""
        for folder in set(folders) if self._fsync else ():
            with suppress(FileNotFoundError):
                number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(number)
                finally:
                    os.close(number)

    @contextmanager
    def lock(self, stripe: str) -> Iterator[None]:
        """Hold the lock of all files in the folders called *stripe*.

        Raises StoreUnavailable if others hold it for longer than the timeout. The lock belongs
        to this block, not to other threads or a child forked meanwhile.
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
                        # Explicitly, as a child forked meanwhile has the file open too.
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
        """Return the earlier of this host's and the file system's time.

        Deletion by age uses it, so that a clock that is ahead deletes nothing early.
        """
        return min(self.clock(), self.shared_clock())

    def _touch(self) -> float:
        """Return the file system's time: a file server stamps a touched folder itself.

        That needs no space, as a sweep must work on a full disk.
        """
        try:
            os.utime(self.root)
        except OSError as exc:
            if exc.errno in _READ_ONLY:
                return self.clock()
            raise
        return self.root.stat().st_mtime

    def sweep(self, *, dry_run: bool = False) -> list[SweepItem]:
        """Delete what killed writers left in ``tmp/``, unless *dry_run*; return it."""
        found = self._left_before(self.clock() - _ABANDONED)
        if found:
            found = self._left_before(self.sure_time() - _ABANDONED)
        for path, _ in found if not dry_run else ():
            path.unlink(missing_ok=True)
        return [
            SweepItem("file", path.name, size, "left by a killed writer") for path, size in found
        ]

    def _left_before(self, moment: float) -> list[tuple[Path, int]]:
        """Return the files in ``tmp/`` last written before *moment*, and their sizes."""
        found = []
        for entry in self.files(self.root / "tmp", ASIDE):
            with suppress(FileNotFoundError):
                found_stat = entry.stat()
                if found_stat.st_mtime < moment:
                    found.append((Path(entry.path), found_stat.st_size))
        return found

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """Return a folder's entries; none if it doesn't exist or isn't a folder."""
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
            # Other processes never see it without its permissions.
            aside = folder.with_name(f".{folder.name}-{uuid4().hex}")
            aside.mkdir(mode=0o700)
            try:  # the kernel has set an inherited setgid bit
                setgid = aside.stat().st_mode & stat.S_ISGID
                aside.chmod(self._mode | (self._mode & 0o444) >> 2 | setgid)
                aside.rename(folder)
            except OSError:
                aside.rmdir()
                if not folder.is_dir():  # else another process created it
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
