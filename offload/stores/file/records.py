"""Small named files that change: pointers and leases."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from offload.stores.checks import check_name, check_owner, check_ttl, check_value
from offload.stores.file.disk import Disk
from offload.stores.protocols import SweepItem

__all__ = ("RECORD", "FileLeases", "FilePointers", "Records")

RECORD = re.compile(r"[0-9a-f]{40}", re.ASCII)
"""Names of a record's file."""
_LONGEST = 1000  # bytes of a name, and more
_REMEMBER = 86400.0  # seconds for which a lease that ended keeps its last fencing number


class Records:
    """Named bytes in a folder, each in a file called by its name's hash.

    (Names have slashes, and differ only in case where a file system sees one name.) The
    first line is the name, for whoever looks at the files or lists the names.
    """

    def __init__(self, disk: Disk, folder: str) -> None:
        self.disk = disk
        self._folder = disk.root / folder

    def read(self, name: str) -> bytes | None:
        try:
            return self._path(name).read_bytes().partition(b"\n")[2]
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def write(self, name: str, content: bytes | None) -> None:
        """Change or (None) remove a record; the caller holds the lock of its stripe."""
        path = self._path(name)
        if content is None:
            path.unlink(missing_ok=True)
        else:
            self.disk.move(self.disk.write_aside((name.encode(), b"\n", content)), path)
        self.disk.flush((path.parent, path.parent.parent))

    def names(self) -> Iterator[str]:
        for stripe in self.disk.entries(self._folder):
            for entry in self.disk.files(Path(stripe.path), RECORD):
                with suppress(FileNotFoundError), Path(entry.path).open("rb") as file:
                    name = file.readline(_LONGEST).rstrip(b"\n").decode("ascii", "replace")
                    if self._is_of(name, entry.path):  # else others put it there
                        yield name

    def _is_of(self, name: str, path: str) -> bool:
        try:
            return self._path(name) == Path(path)
        except ValueError:
            return False

    def stripe(self, name: str) -> str:
        return self._path(name).parent.name

    def _path(self, name: str) -> Path:
        hashed = hashlib.blake2b(check_name(name).encode(), digest_size=20).hexdigest()
        return self._folder / hashed[:2] / hashed


class FilePointers:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._records = Records(disk, "pointers")

    def read(self, name: str) -> bytes | None:
        with self._disk.errors():
            return self._records.read(name)

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        return list(map(self.read, names))

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        if value is not None:
            check_value(value)
        with self._disk.errors(), self._disk.lock(self._records.stripe(name)):
            if self._records.read(name) != expected:
                return False
            if value is not None or expected is not None:
                self._records.write(name, value)
            return True

    def names(self, prefix: str = "") -> Iterator[str]:
        with self._disk.errors():
            found = [name for name in self._records.names() if name.startswith(prefix)]
        return iter(found)


@dataclass
class _Lease:
    owner: str = ""
    fence: int = 0
    until: float = 0.0


class FileLeases:
    """Leases by the clock of whoever asks.

    A host whose clock runs ahead of the owner's may take a lease that much too early;
    the fencing number tells the owners apart all the same. It does not forget one early.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._records = Records(disk, "leases")

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:
        check_owner(owner)
        ttl = check_ttl(ttl)
        with self._disk.errors(), self._disk.lock(self._records.stripe(name)):
            lease = self._read(name)
            now = self._disk.clock()
            if lease.until <= now:
                # By time, so that it goes on rising after the lease was forgotten.
                lease = _Lease(owner, max(lease.fence + 1, int(now * 1e6)))
            elif lease.owner != owner:
                return None
            lease.until = now + ttl
            self._write(name, lease)
            return lease.fence

    def renew(self, name: str, owner: str, ttl: float) -> bool:
        return self._change(name, owner, check_ttl(ttl))

    def release(self, name: str, owner: str) -> bool:
        return self._change(name, owner, 0.0)

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Forget leases that ended a day ago, unless *dry_run*, and yield them."""
        with self._disk.errors():
            for name in list(self._records.names()):
                with self._disk.lock(self._records.stripe(name)):
                    until = self._read(name).until + _REMEMBER
                    ended = until < self._disk.clock() and until < self._disk.sure_time()
                    if ended and not dry_run:
                        self._records.write(name, None)
                if ended:
                    yield SweepItem("lease", name, 0, "ended a day ago")

    def _change(self, name: str, owner: str, ttl: float) -> bool:
        with self._disk.errors(), self._disk.lock(self._records.stripe(name)):
            lease = self._read(name)
            now = self._disk.clock()
            if lease.owner != owner or lease.until <= now:
                return False
            lease.until = now + ttl
            self._write(name, lease)
            return True

    def _read(self, name: str) -> _Lease:
        try:
            return _Lease(**json.loads(self._records.read(name) or b"{}"))
        except (TypeError, ValueError):
            return _Lease()  # a file that something else has damaged is no lease

    def _write(self, name: str, lease: _Lease) -> None:
        self._records.write(name, json.dumps(asdict(lease)).encode())
