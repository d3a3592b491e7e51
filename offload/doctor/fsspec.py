"""Check a store in an fsspec file system."""

from __future__ import annotations

from collections.abc import Iterator

from offload.doctor.server import stray_findings
from offload.inspect.findings import Finding
from offload.stores.expiry import BLOB_NAME
from offload.stores.fsspec.folder import CLOCK
from offload.stores.fsspec.store import FsspecStore

__all__ = ("diagnose",)


def diagnose(store: FsspecStore) -> Iterator[Finding]:
    """Report stray files."""
    names = store.blobs.folder.names()
    own = (name for name in names if BLOB_NAME.fullmatch(name) or CLOCK.fullmatch(name))
    strays = [f"blobs/{name}" for name in set(names).difference(own)]
    yield from stray_findings(
        [*strays, *store.files.strays()], "keep what others write out of the folder"
    )
