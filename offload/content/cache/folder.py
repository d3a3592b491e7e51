"""The folder of the node cache: its access checks, its locks, and its space.

::

    b3-1f0c…        a complete value; its mtime is when it was last used
    b3-1f0c….part   a value being written by the process that holds its flock; at its full size
                    from the start, which reserves the space
    lock            is held while space is reserved
    worker-0, …     locked by processes of workers, one each, so that publishers know whether
                    values written here may be read

flock(2) ends with its holder, so a killed process blocks no other, and a file it left behind is
unlocked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import TypeVar

from offload.digest import Digest
from offload.errors import ConfigurationError, IntegrityError

_PART = ".part"
_PREFIX = "b3-"
_LOCK = "lock"
_WORKER = "worker-"
_MOST_WORKERS = 1024
_LOCK_WAIT = 3.0  # seconds for others to reserve space, which takes milliseconds
_EMPTY = 60.0  # seconds for which a file may exist before its process has locked it
_SPARE = 16  # one in so many bytes of the file system stays free

L = TypeVar("L", bound="FileLock")


class FileLock:
    """A file that this process has locked."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path
        _locks.add(self)

    def release(self) -> None:
        """Close it, and with it the lock."""
        with _forking:
            fd, self.fd = self.fd, -1
            _locks.discard(self)
            if fd >= 0:
                os.close(fd)


class PartialFile(FileLock):
    """A file that this process is filling."""

    def close(self) -> None:
        """Remove the file, unless it is complete."""
        if self.fd >= 0:
            with suppress(OSError):
                self.path.unlink()
            self.release()


_locks: set[FileLock] = set()
_forking = threading.RLock()  # so that no fork comes between taking a lock and recording it


def _after_fork() -> None:
    """Close a child's copies, which would keep the locks after the parent exits."""
    for lock in list(_locks):
        lock.release()
    _forking.release()


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_after_fork
)


class Folder:
    """The folder at *path*, created with access for its owner only when first needed.

    Args:
        size: maximum bytes of all its files together.
        shared: whether it is on a tmpfs that others use as well. Then its files never
            exceed half of the tmpfs, or a quarter of this process's memory limit (control
            group). A new file never takes more than half of the free memory.
        unused: seconds after which an unused file is removed, whenever space is reserved.
    """

    def __init__(
        self,
        path: Path,
        size: int,
        *,
        shared: bool = False,
        unused: float = 86400.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = path
        self._size = size
        self._shared = shared
        self._unused = unused
        self._sleep = sleep
        self._is_used_here = False
        self._mark: FileLock | None = None

    def check(self) -> None:
        """Create the folder if it is missing.

        Raises ConfigurationError if others could read or plant values in it.
        """
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            found = self.path.lstat()
        self._check_access(found)
        if self._is_used_here:
            self._keep_mark()

    def _check_access(self, found: os.stat_result) -> None:
        if not stat.S_ISDIR(found.st_mode):
            self._refuse(
                "it is not a folder" if not stat.S_ISLNK(found.st_mode) else "it is a link"
            )
        if found.st_uid != os.geteuid():
            self._refuse(f"it belongs to user {found.st_uid}, and this is user {os.geteuid()}")
        if found.st_mode & 0o077:
            self._refuse(f"others may use it (mode {stat.S_IMODE(found.st_mode):o}, not 700)")
        above = self.path.parent.stat()
        if above.st_mode & 0o002 and not above.st_mode & stat.S_ISVTX:
            self._refuse(f"others may replace it: {self.path.parent} has no sticky bit")

    def _refuse(self, why: str) -> None:
        raise ConfigurationError(f"offload_cache: the folder {self.path} is refused: {why}")

    # -- whether workers read values here

    def occupy(self) -> None:
        """Mark the folder as used by a worker, until `vacate` or the end of this process."""
        self._is_used_here = True
        self.check()

    def vacate(self) -> None:
        """Remove this process's mark."""
        self._is_used_here = False
        mark, self._mark = self._mark, None
        if mark is not None:
            mark.release()

    def is_used(self) -> bool:
        """Return whether a worker of this machine uses the folder. Creates nothing.

        Raises OSError and ConfigurationError if the folder can't be used by this process.
        """
        try:
            self._check_access(self.path.lstat())
        except FileNotFoundError:
            return False
        for number in range(_MOST_WORKERS):
            with _forking:
                try:
                    fd = os.open(self._worker(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                except FileNotFoundError:
                    return False
                try:
                    # Processes that ask at the same time don't exclude each other. A worker that
                    # starts right now takes the next number instead.
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
                finally:
                    os.close(fd)
        return False

    def _keep_mark(self) -> None:
        """Lock a file of one's own, again if it was removed."""
        with _forking:
            mark = self._mark
            if mark is not None and mark.fd >= 0 and mark.path.exists():
                return
            if mark is not None:
                mark.release()
            free = map(self._take, map(self._worker, range(_MOST_WORKERS)), repeat(FileLock))
            self._mark = next(filter(None, free), None)

    def _worker(self, number: int) -> Path:
        return self.path / f"{_WORKER}{number}"

    # -- space in general

    def limit(self) -> int:
        """Return the maximum bytes of all files together."""
        if not self._shared:
            return self._size
        system = os.statvfs(self.path)
        half = system.f_blocks * system.f_frsize // 2
        return min(self._size, half, (memory_limit() or self._size * 4) // 4)

    # -- single files

    def open(self, digest: Digest) -> int | None:
        """Open a complete file for reading; return None if there is none.

        Raises IntegrityError for a file that another user may have written.
        """
        path = self._path(digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise IntegrityError(f"{path} is a link") from None
            raise
        found = os.fstat(fd)
        if (
            stat.S_ISREG(found.st_mode)
            and found.st_uid == os.geteuid()
            and not found.st_mode & 0o077
        ):
            return fd
        os.close(fd)
        raise IntegrityError(
            f"{path} is not private to this user (user {found.st_uid}, mode {found.st_mode:o})"
        )

    def touch(self, digest: Digest) -> bool:
        """Note that a complete file is used now; return False if there is none."""
        try:
            os.utime(self._path(digest), follow_symlinks=False)
        except OSError:
            return False
        return True

    def remove(self, digest: Digest) -> None:
        """Remove a complete file; existing mappings of it stay valid."""
        self._path(digest).unlink(missing_ok=True)

    def lock(self, digest: Digest) -> PartialFile | None:
        """Start to fill a file; None while another process does. Never waits."""
        return self._take(self._part(digest), PartialFile)

    def finish(self, part: PartialFile) -> None:
        """Give a file that is complete its final name."""
        with self._locked():  # or a process reserving space might see it under neither name
            part.path.replace(part.path.with_suffix(""))
        part.release()

    def progress(self, digest: Digest) -> tuple[int, int] | None:
        """Return the inode of the file being filled and when it was last written to (ns)."""
        try:
            found = self._part(digest).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _path(self, digest: Digest) -> Path:
        return self.path / digest.replace(":", "-")

    def _part(self, digest: Digest) -> Path:
        return self.path / (digest.replace(":", "-") + _PART)

    # -- space

    def reserve(self, part: PartialFile, size: int) -> tuple[bool, int]:
        """Reserve *size* bytes for *part*, removing the least recently used files if needed.

        Returns whether the space was reserved, and how many files were removed: none for a value
        that can't fit.
        """
        with self._locked():
            return self._reserve(part, size)

    def _reserve(self, part: PartialFile, size: int) -> tuple[bool, int]:
        held = coming = removed = 0
        complete = []
        now = time.time()
        for entry in self._entries():
            path = Path(entry.path)
            if path == part.path:
                continue
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if path.suffix == _PART:
                    # Its process may be about to lock an empty file, and would find this lock.
                    is_new = not found.st_size and found.st_mtime + _EMPTY > now
                    if not is_new and not self._left_over(path):
                        held += found.st_size
                        coming += max(0, found.st_size - found.st_blocks * 512)
                elif found.st_mtime + self._unused < now:
                    path.unlink()
                    removed += 1
                else:
                    held += found.st_size
                    complete.append((found.st_mtime_ns, found.st_size, path))
        short = max(held + size - self.limit(), size + coming - self._free())
        if short > sum(entry[1] for entry in complete):
            return False, removed
        for _, length, path in sorted(complete):
            if short <= 0:
                break
            path.unlink(missing_ok=True)
            short -= length
            removed += 1
        if size + coming > self._free():  # removed files are still mapped somewhere
            return False, removed
        os.ftruncate(part.fd, 0)
        os.ftruncate(part.fd, size)
        return True, removed

    def _entries(self) -> list[os.DirEntry[str]]:
        with os.scandir(self.path) as found:
            return [entry for entry in found if entry.name.startswith(_PREFIX)]

    def _free(self) -> int:
        system = os.statvfs(self.path)
        free = system.f_frsize * (system.f_bavail - system.f_blocks // _SPARE)
        if not self._shared:
            return free
        memory = available_memory()
        return free if memory is None else min(free, memory // 2)

    def _left_over(self, path: Path) -> bool:
        """Remove a file that a killed process left behind; return whether it was one."""
        left = self._take(path, PartialFile)
        if left is None:
            return False
        left.close()
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock; raises TimeoutError if others hold it for too long."""
        path = self.path / _LOCK
        deadline = time.monotonic() + _LOCK_WAIT
        while (lock := self._take(path, FileLock)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has held {path} for {_LOCK_WAIT:g} s")
            self._sleep(0.001)
        try:
            yield
        finally:
            lock.release()

    @staticmethod
    def _take(path: Path, kind: type[L]) -> L | None:
        """Open and lock a file; return None if it is locked already. Never waits."""
        with _forking:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last holder may have renamed or removed it meanwhile.
                if os.path.samestat(os.fstat(fd), path.lstat()):
                    return kind(fd, path)
            except (BlockingIOError, FileNotFoundError):
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            return None


def is_tmpfs(path: Path) -> bool:
    """Return whether *path* is on a tmpfs."""
    try:
        device = path.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    return any(
        line.split()[2] == number and line.partition(" - ")[2].startswith("tmpfs ")
        for line in mounts.splitlines()
    )


def is_in_memory(path: Path) -> bool:
    """Return whether *path* is on a tmpfs, or would be if it were created."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return is_tmpfs(path)


def available_memory() -> int | None:
    """Return the machine's free memory in bytes, if known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


@cache
def memory_limit() -> int | None:
    """Return the memory limit of this process's control groups in bytes, if known."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits = []
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:
            top, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            top, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        inner = top / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder == top or top in folder.parents:
                with suppress(OSError, ValueError):  # "max" means no limit
                    limits.append(int((folder / name).read_text()))
    return min(limits, default=None)
