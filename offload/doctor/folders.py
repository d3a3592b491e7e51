"""Check the file system of stores in files and SQLite, and a store in fsspec's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from re import Pattern

from offload.doctor.server import Capacity, stray_findings
from offload.inspect.findings import Finding
from offload.stores.capabilities import SMALL_FILE
from offload.stores.expiry import BLOB_NAME
from offload.stores.file.blobs import STRIPE
from offload.stores.file.disk import ASIDE, Disk
from offload.stores.file.store import RECORD
from offload.stores.fsspec.folder import CLOCK
from offload.stores.fsspec.store import FsspecStore
from offload.text import human_size

__all__ = ("capacity", "check_space", "diagnose_files", "diagnose_fsspec")

_LAYOUT = {
    "blobs": (STRIPE, BLOB_NAME),
    "kept": (STRIPE, BLOB_NAME),
    "pointers": (STRIPE, RECORD),
    "leases": (STRIPE, RECORD),
    "locks": (STRIPE,),
    "stats": (SMALL_FILE,),
    "tmp": (ASIDE,),
}
_LITTLE = 0.05  # of the file system


def diagnose_files(disk: Disk) -> Iterator[Finding]:
    """Check the space left for this user, and look for stray files."""
    with disk.errors():
        yield from check_space(disk.root)
    with disk.errors():
        names = [str(path.relative_to(disk.root)) for path in strays(disk)]
    yield from stray_findings(
        names, "keep file managers, thumbnails, and backups out of the folder"
    )


def strays(disk: Disk) -> Iterator[Path]:
    """Yield the files and folders below the store's that don't belong to it."""
    for entry in disk.entries(disk.root):
        path = Path(entry.path)
        if entry.name in _LAYOUT and entry.is_dir():
            yield from _strays(disk, path, _LAYOUT[entry.name])
        else:
            yield path


def _strays(disk: Disk, folder: Path, levels: Sequence[Pattern[str]]) -> Iterator[Path]:
    name, *below = levels
    for entry in disk.entries(folder):
        if not name.fullmatch(entry.name) or not (entry.is_dir() if below else entry.is_file()):
            yield Path(entry.path)
        elif below:
            yield from _strays(disk, Path(entry.path), below)


def check_space(path: Path) -> Iterator[Finding]:
    """Check the space left for this user in the file system of *path*. Raises OSError."""
    free, whole = _room(path)
    shown = f"{human_size(free)} of {human_size(whole)} are free"
    if free < whole * _LITTLE:
        yield Finding(
            "warning",
            f"{shown}: publishing fails when the disk is full",
            "free some space; run `celery offload gc` more often, or lower offload_retention",
        )
    else:
        yield Finding("ok", shown)


def capacity(path: Path) -> Iterator[Capacity]:
    """Yield the used and total space of the file system of *path*. Raises OSError."""
    free, whole = _room(path)
    yield Capacity(kind="file system", used=whole - free, limit=whole)


def _room(path: Path) -> tuple[int, int]:
    """Return the bytes free for this user, and the total."""
    there = next(each for each in (path, *path.parents) if each.exists())
    system = os.statvfs(there)  # the path is created with the first write
    return system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize


def diagnose_fsspec(store: FsspecStore) -> Iterator[Finding]:
    """Report stray files."""
    names = store.blobs.folder.names()
    own = (name for name in names if BLOB_NAME.fullmatch(name) or CLOCK.fullmatch(name))
    strays = [f"blobs/{name}" for name in set(names).difference(own)]
    yield from stray_findings(
        [*strays, *store.files.strays()], "keep what others write out of the folder"
    )
