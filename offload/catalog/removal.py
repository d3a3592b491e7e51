"""Removing blobs that nobody needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offload.digest import Digest
from offload.stores.capabilities import blob_inspection_of, hold_tracking_of
from offload.stores.protocols import Store

__all__ = ("holders_of", "remove", "sizes_of")


def sizes_of(store: Store, digests: Sequence[Digest]) -> dict[Digest, int]:
    """Return the stored bytes of those blobs that are there."""
    found = zip(digests, blob_inspection_of(store).peek(digests, 1), strict=True)
    return {digest: seen.size for digest, seen in found if seen is not None}


def holders_of(store: Store, digest: Digest) -> Mapping[str, float] | None:
    """Return who holds a blob for how many seconds; None where no account is kept."""
    return store.blobs.holders(digest) if store.blobs.tracks_holds else None


def remove(
    store: Store, digests: Sequence[Digest], *, force: bool
) -> dict[Digest, Mapping[str, float] | None]:
    """Remove blobs; return those that stay, with `holders_of` each.

    What somebody holds stays, also if the hold was taken just now; all stay where no account is
    kept. With *force* none stay, and tasks that need one fail with BlobMissing.
    """
    account = hold_tracking_of(store)
    if force:
        store.blobs.delete(digests)
        return {}
    stay: Any = digests if account is None else account.delete_unheld(digests)
    return {digest: holders_of(store, digest) for digest in digests if digest in set(stay)}
