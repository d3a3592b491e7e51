"""Argument checks and errors about blobs, shared by all stores."""

from __future__ import annotations

import math
import re

from offload.digest import Digest
from offload.errors import BlobMissing, IntegrityError, StoreUnavailable

MAX_POINTER = 64 * 1024
"""Maximum bytes of a pointer's value."""

_NAME = re.compile(r"[A-Za-z0-9._/:@+=-]{1,200}", re.ASCII)
_CENTURY = 100 * 366 * 86400.0  # seconds; longer times overflow some servers' clocks
ENDLESS = 100 * 365 * 86400.0
"""Seconds that stand for "forever" in a store."""


def check_name(name: str) -> str:
    """Return *name*. Raises ValueError if it isn't a valid name of a pointer or lease."""
    if not _NAME.fullmatch(name) or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise ValueError(
            f"not a name: {name[:250]!r}; names are 1 to 200 characters of "
            "A-Z a-z 0-9 . _ - : @ + = /, with no empty, '.' or '..' segment"
        )
    return name


def check_value(value: bytes) -> bytes:
    """Return a pointer's new *value*. Raises ValueError if it exceeds 64 KiB."""
    if len(value) > MAX_POINTER:
        raise ValueError(f"a pointer holds at most {MAX_POINTER} bytes, not {len(value)}")
    return value


def check_owner(owner: str) -> str:
    """Return a lease's *owner*. Raises ValueError if it is empty or over 200 characters."""
    if not 0 < len(owner) <= 200:
        raise ValueError(f"an owner is 1 to 200 characters, not {owner[:250]!r}")
    return owner


def check_holder(holder: str) -> str:
    """Return a blob's *holder*. Raises ValueError unless it is 1 to 300 bytes of UTF-8.

    It must not start with ``@``, which marks a store's own entries.
    """
    if not 0 < len(holder.encode("utf-8", "surrogatepass")) <= 300 or holder.startswith("@"):
        raise ValueError(
            f"a holder is a name of 1 to 300 bytes that does not start with @, not {holder[:350]!r}"
        )
    return holder


def names_holder(holder: str, name: str) -> bool:
    """Return whether *holder* is ``<name>`` or ``<kind>:<name>``, or that with ``+<number>``."""
    return any(
        called == name or called.startswith(f"{name}+")
        for called in (holder, holder.partition(":")[2])
    )


def check_ttl(ttl: float) -> float:
    """Return *ttl* seconds, limited to between a millisecond and a century.

    Return `ENDLESS` for infinity. Raises ValueError if it isn't positive.
    """
    try:
        is_positive = ttl > 0  # not NaN
    except TypeError:
        is_positive = False
    if not is_positive:
        raise ValueError(f"a time to live is a positive number of seconds, not {ttl!r}")
    if ttl == math.inf:
        return ENDLESS
    return max(float(min(ttl, _CENTURY)), 0.001)


def check_timeout(timeout: float | None) -> float | None:
    """Return *timeout* seconds, at least 0; None if it is None or more than a century.

    None means no limit. Raises ValueError if *timeout* isn't a number.
    """
    if timeout is None:
        return None
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    seconds = max(min(timeout, _CENTURY), 0.0) if is_number else math.nan
    if math.isnan(seconds):
        raise ValueError("a timeout is a number of seconds, or None for no limit")
    return None if timeout > _CENTURY else seconds


def check_limit(limit: int) -> int:
    """Return *limit* bytes. Raises ValueError if it is negative."""
    if limit < 0:
        raise ValueError(f"a limit is a number of bytes, not {limit!r}")
    return limit


# -- errors about blobs


class TierNotConfigured(StoreUnavailable):
    """A blob is in a tier that this app doesn't use."""


def tier_not_configured(digest: Digest, tier: str, url: str) -> TierNotConfigured:
    """Return the error for a blob that, according to the store at *url*, is in another *tier*."""
    return TierNotConfigured(
        f"{digest} is in {tier}, according to {url}, but this app doesn't use that store: add it "
        "to offload_store again until its values are no longer needed",
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
    """Return the error for a blob that changed during each of *turns* attempts."""
    return StoreUnavailable(
        f"{digest} in {url} was changed by others {turns} times in a row",
        digest=digest,
        store=url,
    )
