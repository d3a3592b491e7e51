"""In how many values a chunk is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice

from offload.catalog.blobs import summarize_blobs
from offload.catalog.listing import PAGE
from offload.digest import Digest
from offload.stores.protocols import BlobInfo, Store

__all__ = ("Sharing",)


class Sharing:
    """Counted when it is made, by a look at all blobs of *store*, or *limit* of them: some KiB are
    read of each.

    Args:
        seen: is called with each.
    """

    def __init__(
        self,
        store: Store,
        limit: int | None = None,
        *,
        seen: Callable[[BlobInfo], None] | None = None,
    ) -> None:
        self._times: Counter[bytes] = Counter()
        infos = islice(store.blobs.scan(), limit)
        while some := list(islice(infos, PAGE)):
            if seen is not None:
                for info in some:
                    seen(info)
            for each in summarize_blobs(store, [info.digest for info in some]):
                if each is not None and each.root is not None:
                    self._times.update({_key(chunk.digest) for chunk in each.root.chunks})

    def __call__(self, digest: Digest) -> int:
        """Return in how many values a chunk is."""
        return self._times[_key(digest)]


def _key(digest: Digest) -> bytes:
    return bytes.fromhex(digest[3:27])  # of 100,000 digests no two are alike in that
