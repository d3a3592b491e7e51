"""Check a store in an fsspec file system."""

from __future__ import annotations

from collections.abc import Iterator

from offload.doctor.server import stray_findings
from offload.inspect.findings import Finding
from offload.stores.fsspec.store import FsspecStore

__all__ = ("diagnose",)


def diagnose(store: FsspecStore) -> Iterator[Finding]:
    """Report stray files."""
    names = [*store.blobs.strays(), *store.shelf.strays()]
    yield from stray_findings(names, "keep what others write out of the folder")
