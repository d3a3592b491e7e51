"""What can be wrong with a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

from offload.ref import human_size
from offload.stores.capacity import Capacity
from offload.stores.file.disk import Disk
from offload.stores.findings import Finding

__all__ = ("capacity", "diagnose")

_LITTLE = 0.05  # of the file system


def diagnose(disk: Disk) -> Iterator[Finding]:
    """Look at the room that is left for this user."""
    free, whole = _room(disk)
    shown = f"{human_size(free)} of {human_size(whole)} are free"
    if free < whole * _LITTLE:
        yield Finding(
            "warning",
            f"{shown}: publishing fails when its disk is full",
            "make room; run `celery offload gc` more often, or lower offload_retention",
        )
    else:
        yield Finding("ok", shown)


def capacity(disk: Disk) -> Iterator[Capacity]:
    """Look at the whole file system that the folder is in."""
    free, whole = _room(disk)
    yield Capacity(kind="file system", used=whole - free, limit=whole)


def _room(disk: Disk) -> tuple[int, int]:
    """Return bytes that are free for this user, and all."""
    with disk.errors():
        there = next(path for path in (disk.root, *disk.root.parents) if path.exists())
        system = os.statvfs(there)  # the folder is made when something is first written
    return system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize
