"""Base class of blob stores without holds, in which blobs only expire."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from offload.digest import Buffer, Digest, parse_digest
from offload.errors import StoreError
from offload.stores.capabilities import BlobPeek
from offload.stores.checks import check_holder, check_limit, check_ttl
from offload.stores.processes import Threads
from offload.stores.protocols import PUT

WINDOW = 32 << 20
"""Bytes read ahead (or one blob, if that is more)."""
BLOB_NAME = re.compile(r"b3-[0-9a-f]{64}", re.ASCII)
"""Names of a blob's file, folder, or object."""


def blob_name(digest: Digest, url: str) -> str:
    """Return the name of a blob's file; raises StoreError if *digest* isn't one."""
    name = digest.replace(":", "-")
    if not BLOB_NAME.fullmatch(name):
        raise StoreError(f"not a content digest: {digest[:100]!r}", store=url)
    return name


def blob_digest(name: str) -> Digest | None:
    """Return the digest of the blob whose file has this name; None for other files."""
    return parse_digest(name.replace("-", ":")) if BLOB_NAME.fullmatch(name) else None


class ExpiringBlobs(ABC):
    """Blobs that live for the longest requested time; releasing has no effect.

    A driver implements the operations on one blob; several run at once in *threads*.
    """

    tracks_holds = False

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    @property
    def puts_at_once(self) -> int:
        return self._threads.number

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        check_holder(holder)
        check_ttl(ttl)
        asked = list(dict.fromkeys(digests))
        exist = self._threads.each(lambda digest: self._extend_one(digest, ttl), asked)
        return {digest for digest, exists in zip(asked, exist, strict=True) if not exists}

    def release(
        self,
        digests: Sequence[Digest],  # noqa: ARG002
        holder: str,
        grace: float,  # noqa: ARG002
    ) -> None:
        """Do nothing: no holds are tracked."""
        check_holder(holder)

    def holders(self, digest: Digest) -> Mapping[str, float]:  # noqa: ARG002
        return {}

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        check_limit(limit)
        window = min(max(WINDOW // max(limit, 1), 1), self._threads.number)
        return self._threads.ahead(lambda digest: self._get_one(digest, limit), digests, window)

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        check_limit(size)
        return self._threads.each(lambda digest: self._peek_one(digest, size), digests)

    @abstractmethod
    def _extend_one(self, digest: Digest, ttl: float) -> bool:
        """Keep a blob at least *ttl* seconds; return whether it exists."""

    @abstractmethod
    def _get_one(self, digest: Digest, limit: int) -> Buffer:
        """Return a blob; raises BlobMissing, or IntegrityError for more than *limit* bytes."""

    @abstractmethod
    def _peek_one(self, digest: Digest, size: int) -> BlobPeek | None:
        """Return a blob's state and first *size* bytes; None if it doesn't exist."""
