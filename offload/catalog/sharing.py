"""In how many values a chunk is."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from offload.catalog.listing import PAGE
from offload.content.looking import glance
from offload.digest import Digest
from offload.stores.base import Store

__all__ = ("Sharing",)


class Sharing:
    """Counted when it is made, by a look at all blobs of *store*, or *limit* of them: some KiB are
    read of each.
    """

    def __init__(self, store: Store, limit: int | None = None) -> None:
        self._times: Counter[bytes] = Counter()
        digests = (info.digest for info in islice(store.blobs.scan(), limit))
        while some := list(islice(digests, PAGE)):
            for each in glance(store, some):
                if each is not None and each.root is not None:
                    self._times.update({_key(chunk.digest) for chunk in each.root.chunks})

    def __call__(self, digest: Digest) -> int:
        """Return in how many values a chunk is."""
        return self._times[_key(digest)]


def _key(digest: Digest) -> bytes:
    return bytes.fromhex(digest[3:27])  # of 100,000 digests no two are alike in that
