"""``mode="observe"``: what would have been stored, without storing anything."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from offload.content.manifest import pack
from offload.counters import SIZES, Counters
from offload.digest import Digest
from offload.serializers.choose import Registry
from offload.stores.processes import PerProcess

__all__ = ("LEAST", "Observer")

LEAST = SIZES[0]
"""Bytes from which values are counted by size, though the threshold is higher: what a lower one
would do is a part of the answer."""

_REMEMBERED = 10_000

logger = logging.getLogger(__name__)


class Observer:
    """Serialises and names values as publishing would, and counts.

    What goes wrong here is logged, never raised: the message is sent as it is.
    """

    def __init__(self, serializers: Registry, counters: Counters) -> None:
        self._serializers = serializers
        self._counters = counters
        self._seen = PerProcess(_Seen)

    def value(self, value: Any, native: str, threshold: int) -> None:
        """Count *value* by its size, and if it is one that would be stored as that."""
        try:
            self._value(value, native, threshold)
        except Exception:
            logger.warning("offload could not have carried a %s", type(value), exc_info=True)

    def _value(self, value: Any, native: str, threshold: int) -> None:
        counters = self._counters
        with counters.timed("serialise"):
            payload = self._serializers.encode(value, native)
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


class _Seen:
    """The blobs that were seen last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: OrderedDict[Digest, None] = OrderedDict()

    def add(self, digests: Iterable[Digest]) -> set[Digest]:
        """Return which of *digests* are new."""
        seen, new = self._digests, set()
        with self._lock:
            for digest in digests:
                if digest not in seen:
                    new.add(digest)
                seen[digest] = None
                seen.move_to_end(digest)
            while len(seen) > _REMEMBERED:
                seen.popitem(last=False)
        return new
