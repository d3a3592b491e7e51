"""What the parts of a file store share: its folders, writing, locking, errors."""

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

__all__ = ("ASIDE", "Disk")

Clock = Callable[[], float]

_ABANDONED = 86400.0  # seconds after which a file in tmp/ has no writer any more
_PASSING = {
    errno.ENOSPC: "its disk is full: make room, or lower offload_retention",
    errno.EDQUOT: "its quota is used up: make room, or lower offload_retention",
    errno.EMFILE: "this process has too many open files (ulimit -n)",
    errno.ENFILE: "this machine has too many open files",
    errno.EIO: "its disk fails to read or write",
    errno.ESTALE: "the file server has changed below it",
    errno.ETIMEDOUT: "the file server does not answer",
    errno.ENOLCK: "the file server gives no lock now",
    errno.EBUSY: "it is busy",
    errno.EAGAIN: "it is busy",
}
_SHARED = {errno.EACCES, errno.EPERM}
ASIDE = re.compile(r"[0-9A-Za-z-]+", re.ASCII)
"""Names of files in ``tmp/``."""
_LOOK_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}  # nothing can be removed there, either


class Disk:
    """One folder and how its files change.

    Args:
        root: the folder; made when something is first written.
        clock: returns seconds since the epoch. One other than `time.time` is in place of the
            file system's as well.
        lock_timeout: seconds to wait for another process's change of the same file.
        fsync: whether what is written must outlive a power failure.
        mode: permissions of all files, whatever the umask; folders also get what is needed to
            open them, and keep the setgid bit. None: for their owner alone.
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
        self._its_clock = self._touch if clock is time.time else clock
        self._lock_timeout = lock_timeout
        self._fsync = fsync
        self._mode = mode

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise the operating system's errors in this block as ours."""
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
        """Write a new file in ``tmp/``, flushed to disk unless not *fsync*; nothing stays if that
        fails.
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
        """Give a file of `write_aside` its name, in place of any that has it."""
        self._make(path.parent)
        try:
            aside.replace(path)
        except FileNotFoundError:
            # NFS: the answer to a rename that was done got lost, and it was done again.
            if not path.exists():
                raise
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def flush(self, folders: Iterable[Path]) -> None:
        """Make names that were given or taken in these folders outlive a power failure."""
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

        Raises StoreUnavailable if others hold it for longer than the timeout. The lock
        belongs to this block (also among threads, and not to a child forked meanwhile).
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
                        # Explicitly: a child forked meanwhile has the file open as well.
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
        """Return a time that has come, for who removes things by their age: by this host's
        clock and by the file system's, so that neither being ahead makes anything end early.
        """
        return min(self.clock(), self._its_clock())

    def _touch(self) -> float:
        """Return the file system's time: a file server stamps the touch of a folder itself.

        It needs no room, for a full disk is what a sweep is to help.
        """
        try:
            os.utime(self.root)
        except OSError as exc:
            if exc.errno in _LOOK_ONLY:
                return self.clock()
            raise
        return self.root.stat().st_mtime

    def sweep(self, *, dry_run: bool = False) -> list[SweepItem]:
        """Remove what killed writers left in ``tmp/``, unless *dry_run*; return it."""
        found = self._left_before(self.clock() - _ABANDONED)
        if found:
            found = self._left_before(self.sure_time() - _ABANDONED)
        for path, _ in found if not dry_run else ():
            path.unlink(missing_ok=True)
        return [
            SweepItem("file", path.name, size, "left by a killed writer") for path, size in found
        ]

    def _left_before(self, moment: float) -> list[tuple[Path, int]]:
        """Return the files in ``tmp/`` that were last written before, and their sizes."""
        found = []
        for entry in self.files(self.root / "tmp", ASIDE):
            with suppress(FileNotFoundError):
                found_stat = entry.stat()
                if found_stat.st_mtime < moment:
                    found.append((Path(entry.path), found_stat.st_size))
        return found

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """Return what is in a folder; nothing if it is not there, or no folder."""
        try:
            with os.scandir(folder) as found:
                return list(found)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, folder: Path, name: re.Pattern[str]) -> list[os.DirEntry[str]]:
        """Return the files in a folder that are called so; others put what else is there."""
        return [e for e in self.entries(folder) if name.fullmatch(e.name) and e.is_file()]

    @staticmethod
    def _take(number: int, path: Path) -> bool:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # Somebody may have removed the file and locked a new one of that name.
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
            # Others never see it without its permissions.
            aside = folder.with_name(f".{folder.name}-{uuid4().hex}")
            aside.mkdir(mode=0o700)
            try:  # the kernel has set the setgid bit where it is inherited
                setgid = aside.stat().st_mode & stat.S_ISGID
                aside.chmod(self._mode | (self._mode & 0o444) >> 2 | setgid)
                aside.rename(folder)
            except OSError:
                aside.rmdir()
                if not folder.is_dir():  # else another process has made it
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
