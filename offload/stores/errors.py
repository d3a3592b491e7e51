"""Errors that several drivers raise about a blob."""

from __future__ import annotations

from offload.digest import Digest
from offload.errors import BlobMissing, IntegrityError, StoreUnavailable

__all__ = (
    "TierNotConfigured",
    "contention_error",
    "missing_error",
    "size_error",
    "tier_not_configured",
)


class TierNotConfigured(StoreUnavailable):
    """A blob is in a tier that this app doesn't use."""


def tier_not_configured(digest: Digest, tier: str, url: str) -> TierNotConfigured:
    """Return the error for a blob that the store at *url* records to be in another *tier*."""
    return TierNotConfigured(
        f"{digest} is in {tier}, according to {url}, but this app doesn't use that store: add it "
        "to offload_store again until its values aren't needed any more",
        digest=digest,
        store=url,
    )


def missing_error(digest: Digest, url: str, why: str = "it expired or was deleted") -> BlobMissing:
    """Return the error for a blob that isn't in the store at *url*."""
    return BlobMissing(f"{url} has no {digest}: {why}", digest=digest, store=url)


def size_error(digest: Digest, url: str, limit: int) -> IntegrityError:
    """Return the error for a blob of more than *limit* bytes."""
    return IntegrityError(
        f"{digest} in {url} is larger than the limit of {limit} bytes", digest=digest, store=url
    )


def contention_error(digest: Digest, url: str, turns: int) -> StoreUnavailable:
    """Return the error for a blob that others changed during each of *turns* attempts."""
    return StoreUnavailable(
        f"{digest} in {url} was changed by others {turns} times in a row",
        digest=digest,
        store=url,
    )
