"""Count values as publishing would store them, in mode ``observe``."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from offload.content.manifest import pack
from offload.digest import Digest
from offload.metrics.counters import SIZES, Counters
from offload.serializers.choose import Registry
from offload.stores.processes import PerProcess

logger = logging.getLogger(__name__)

LEAST = SIZES[0]
"""Smallest size, in bytes, at which values are counted even if the threshold is higher, to predict
the savings of lower thresholds."""

_DIGESTS_REMEMBERED = 10_000


class Observer:
    """Serializes and hashes values as publishing would, and counts them.

    Errors are logged, never raised: the message is sent unchanged.
    """

    def __init__(self, serializers: Registry, counters: Counters) -> None:
        self._serializers = serializers
        self._counters = counters
        self._seen = PerProcess(_RecentDigests)

    def observe(self, value: Any, serializer: str, threshold: int) -> None:
        """Count *value* by its size, and as a stored value if it reaches *threshold* bytes."""
        try:
            self._observe(value, serializer, threshold)
        except Exception:
            logger.warning("offload couldn't send a %s by reference", type(value), exc_info=True)

    def _observe(self, value: Any, serializer: str, threshold: int) -> None:
        counters = self._counters
        with counters.timed("serialize"):
            payload = self._serializers.encode(value, serializer)
        size = payload.size
        if size < min(threshold, LEAST):
            return
        with counters.timed("hash"):
            packed = pack(payload)
        missing = self._seen.get().add(packed.digests)
        repeated = packed.deduplicated(size, missing)
        counters.sized(size, repeated)
        if size >= threshold:
            counters.add(
                observed_values=1,
                observed_bytes=size,
                observed_repeated_values=0 if missing else 1,
                observed_repeated_bytes=repeated,
            )


class _RecentDigests:
    """The digests of the blobs seen most recently."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: OrderedDict[Digest, None] = OrderedDict()

    def add(self, digests: Iterable[Digest]) -> set[Digest]:
        """Add *digests*; return those that are new."""
        seen, new = self._digests, set()
        with self._lock:
            for digest in digests:
                if digest not in seen:
                    new.add(digest)
                seen[digest] = None
                seen.move_to_end(digest)
            while len(seen) > _DIGESTS_REMEMBERED:
                seen.popitem(last=False)
        return new
