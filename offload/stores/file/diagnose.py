"""What can be wrong with a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

from offload.ref import human_size
from offload.stores.file.disk import Disk
from offload.stores.findings import Finding

__all__ = ("diagnose",)

_LITTLE = 0.05  # of the file system


def diagnose(disk: Disk) -> Iterator[Finding]:
    """Look at the room that is left for this user."""
    with disk.errors():
        system = os.statvfs(disk.root)
    free, whole = system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize
    shown = f"{human_size(free)} of {human_size(whole)} are free"
    if free < whole * _LITTLE:
        yield Finding(
            "warning",
            f"{shown}: publishing fails when its disk is full",
            "make room; run `celery offload gc` more often, or lower offload_retention",
        )
    else:
        yield Finding("ok", shown)
