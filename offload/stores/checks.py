"""Checks of arguments, and errors about blobs, that are the same in every store."""

from __future__ import annotations

import math
import re

from offload.digest import Digest
from offload.errors import BlobMissing, IntegrityError, StoreUnavailable

MAX_POINTER = 64 * 1024
"""Bytes of a pointer's value at most."""

_NAME = re.compile(r"[A-Za-z0-9._/:@+=-]{1,200}", re.ASCII)
_CENTURY = 100 * 366 * 86400.0  # seconds; more overflows some servers' clocks
ENDLESS = 100 * 365 * 86400.0
"""Seconds for which a store keeps what shall live forever."""


def check_name(name: str) -> str:
    """Return *name*; raises ValueError if no pointer or lease may have it."""
    if not _NAME.fullmatch(name) or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise ValueError(
            f"not a name: {name[:250]!r}; names are 1 to 200 characters of "
            "A-Z a-z 0-9 . _ - : @ + = /, with no empty, '.' or '..' segment"
        )
    return name


def check_value(value: bytes) -> bytes:
    """Return a pointer's new *value*; raises ValueError for more than 64 KiB."""
    if len(value) > MAX_POINTER:
        raise ValueError(f"a pointer holds at most {MAX_POINTER} bytes, not {len(value)}")
    return value


def check_owner(owner: str) -> str:
    """Return a lease's *owner*; raises ValueError if it is empty or over 200 characters."""
    if not 0 < len(owner) <= 200:
        raise ValueError(f"an owner is 1 to 200 characters, not {owner[:250]!r}")
    return owner


def check_holder(holder: str) -> str:
    """Return a blob's *holder*; raises ValueError unless it is 1 to 300 bytes of UTF-8.

    It can't start with ``@``, which marks a store's own entries.
    """
    if not 0 < len(holder.encode("utf-8", "surrogatepass")) <= 300 or holder.startswith("@"):
        raise ValueError(
            f"a holder is a name of 1 to 300 bytes that does not start with @, not {holder[:350]!r}"
        )
    return holder


def names_holder(holder: str, name: str) -> bool:
    """Return whether *holder* is ``<name>`` or ``<kind>:<name>``, each also with ``+<number>``."""
    return any(
        called == name or called.startswith(f"{name}+")
        for called in (holder, holder.partition(":")[2])
    )


def check_ttl(ttl: float) -> float:
    """Return *ttl* seconds, limited to a millisecond up to a century, or `ENDLESS` for infinity.

    Raises ValueError if it isn't positive.
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
    """Return *timeout* seconds, at least 0; None, no limit, also for more than a century.

    Raises ValueError if it isn't a number.
    """
    if timeout is None:
        return None
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    seconds = max(min(timeout, _CENTURY), 0.0) if is_number else math.nan
    if math.isnan(seconds):
        raise ValueError("a timeout is a number of seconds, or None for no limit")
    return None if timeout > _CENTURY else seconds


def check_limit(limit: int) -> int:
    """Return *limit* bytes; raises ValueError if it is negative."""
    if limit < 0:
        raise ValueError(f"a limit is a number of bytes, not {limit!r}")
    return limit


# -- errors about blobs


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
