"""The folder of the node cache: who may use it, its locks, and the room in it.

::

    b3-1f0c…        a complete value; its mtime is when it was last used
    b3-1f0c….part   one that is being filled, by whoever holds its flock; at its full size
                    from the beginning, so that its room is taken
    lock            is held while room is made

flock(2) ends with its holder, so a killed process blocks nobody, and what it left is told
by nobody's holding it.
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
from pathlib import Path
from typing import TypeVar

from offload.digest import Digest
from offload.errors import ConfigurationError, IntegrityError

__all__ = ("Folder", "Part", "available_memory", "is_tmpfs", "memory_limit")

_PART = ".part"
_PREFIX = "b3-"
_LOCK = "lock"
_LOCK_WAIT = 1.0  # seconds for others to make room, which takes milliseconds
_SPARE = 16  # one in so many bytes of the file system stays free

H = TypeVar("H", bound="Held")


class Held:
    """A file that this process has locked."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path
        _held.add(self)

    def let_go(self) -> None:
        """Close it, and with it the lock."""
        with _forking:
            fd, self.fd = self.fd, -1
            _held.discard(self)
            if fd >= 0:
                os.close(fd)


class Part(Held):
    """A file that this process fills."""

    def close(self) -> None:
        """Remove the file, unless it is complete."""
        if self.fd >= 0:
            with suppress(OSError):
                self.path.unlink()
            self.let_go()


_held: set[Held] = set()
_forking = threading.RLock()  # so that no fork comes between a lock and its being noted


def _after_fork() -> None:
    """Close a child's copies, which would keep the locks when the parent is gone."""
    for held in list(_held):
        held.let_go()
    _forking.release()


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_after_fork
)


class Folder:
    """The folder at *path*, made for its owner alone when something is first kept in it.

    Args:
        size: bytes that all its files together never exceed.
        shared: whether it is on a tmpfs that others use as well. Then its files never
            exceed half of that, or a quarter of the memory that this process's control
            group is allowed; and another never takes more than half of the free memory.
        unused: seconds after which a file that nobody used goes, whenever room is made.
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

    def check(self) -> None:
        """Make the folder, if it is not there.

        Raises ConfigurationError where others could read or plant values in it.
        """
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            self._refuse("it is no folder" if not stat.S_ISLNK(found.st_mode) else "it is a link")
        if found.st_uid != os.geteuid():
            self._refuse(f"it belongs to user {found.st_uid}, and this is user {os.geteuid()}")
        if found.st_mode & 0o077:
            self._refuse(f"others may use it (mode {stat.S_IMODE(found.st_mode):o}, not 700)")
        above = self.path.parent.stat()
        if above.st_mode & 0o002 and not above.st_mode & stat.S_ISVTX:
            self._refuse(f"others may replace it: {self.path.parent} has no sticky bit")

    def _refuse(self, why: str) -> None:
        raise ConfigurationError(f"offload_cache: the folder {self.path} is refused: {why}")

    def limit(self) -> int:
        """Return the bytes that all files together may have."""
        if not self._shared:
            return self._size
        system = os.statvfs(self.path)
        half = system.f_blocks * system.f_frsize // 2
        return min(self._size, half, (memory_limit() or self._size * 4) // 4)

    # -- single files

    def open(self, digest: Digest) -> int | None:
        """Open a complete file to be read; None if there is none.

        Raises IntegrityError for what this process' user alone cannot have put there.
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
            f"{path} is not this user's alone (user {found.st_uid}, mode {found.st_mode:o})"
        )

    def remove(self, digest: Digest) -> None:
        """Remove a complete file; those who have it mapped keep it."""
        self._path(digest).unlink(missing_ok=True)

    def lock(self, digest: Digest) -> Part | None:
        """Begin to fill a file; None while somebody else does. Never waits."""
        return self._take(self._part(digest), Part)

    def finish(self, part: Part) -> None:
        """Give a file that is complete its final name."""
        with self._alone():  # or who makes room might see it under neither name
            part.path.replace(part.path.with_suffix(""))
        part.let_go()

    def progress(self, digest: Digest) -> tuple[int, int] | None:
        """Return which file is being filled, and when that was last written to."""
        try:
            found = self._part(digest).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _path(self, digest: Digest) -> Path:
        return self.path / digest.replace(":", "-")

    def _part(self, digest: Digest) -> Path:
        return self.path / (digest.replace(":", "-") + _PART)

    # -- room

    def reserve(self, part: Part, size: int) -> tuple[bool, int]:
        """Make room for *part* and take it, by removing what was unused for longest.

        Returns whether there is room, and how many files went. Nothing goes for what
        would not fit all the same.
        """
        with self._alone():
            return self._reserve(part, size)

    def _reserve(self, part: Part, size: int) -> tuple[bool, int]:
        held = coming = gone = 0
        complete = []
        now = time.time()
        for entry in self._entries():
            path = Path(entry.path)
            if path == part.path:
                continue
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if path.suffix == _PART:
                    if not self._left_over(path):
                        held += found.st_size
                        coming += max(0, found.st_size - found.st_blocks * 512)
                elif found.st_mtime + self._unused < now:
                    path.unlink()
                    gone += 1
                else:
                    held += found.st_size
                    complete.append((found.st_mtime_ns, found.st_size, path))
        short = max(held + size - self.limit(), size + coming - self._free())
        if short > sum(entry[1] for entry in complete):
            return False, gone
        for _, length, path in sorted(complete):
            if short <= 0:
                break
            path.unlink(missing_ok=True)
            short -= length
            gone += 1
        if size + coming > self._free():  # what went is still mapped somewhere
            return False, gone
        os.ftruncate(part.fd, 0)
        os.ftruncate(part.fd, size)
        return True, gone

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
        """Remove a file that a killed process began; return whether it was one."""
        left = self._take(path, Part)
        if left is None:
            return False
        left.close()
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock; TimeoutError if others hold it for too long."""
        path = self.path / _LOCK
        deadline = time.monotonic() + _LOCK_WAIT
        while (lock := self._take(path, Held)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has held {path} for {_LOCK_WAIT:g} s")
            self._sleep(0.001)
        try:
            yield
        finally:
            lock.let_go()

    @staticmethod
    def _take(path: Path, kind: type[H]) -> H | None:
        """Open and lock a file; None if somebody has it locked. Never waits."""
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


def available_memory() -> int | None:
    """Return the bytes of memory that the machine has free for programs, if known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


@cache
def memory_limit() -> int | None:
    """Return the bytes of memory that this process's control groups allow it, if known."""
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
                with suppress(OSError, ValueError):  # no limit is written "max"
                    limits.append(int((folder / name).read_text()))
    return min(limits, default=None)
