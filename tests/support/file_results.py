"""Celery's file system result backend, with files that appear whole.

Celery truncates a file, then writes it: a reader between the two gets half a result and raises
``DecodeError``, with or without offload.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery.backends.filesystem import FilesystemBackend


def file_results(folder: Path) -> str:
    """Return the URL of a result backend in *folder*, which exists."""
    return f"{__name__}.WholeFiles+file://{folder}"


class WholeFiles(FilesystemBackend):
    """Write each result beside its place, then move it there."""

    def set(self, key: Any, value: Any) -> None:
        new = b"new-" + key
        super().set(new, value)
        Path(self._filename(new).decode()).replace(self._filename(key).decode())
