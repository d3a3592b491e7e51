"""``mode="observe"``: what would have been stored, without storing anything."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

from offload.content.manifest import pack
from offload.counters import Counters
from offload.digest import Digest
from offload.serializers.choose import Registry

__all__ = ("Observer",)

_REMEMBERED = 10_000

logger = logging.getLogger(__name__)


class Observer:
    """Serialises and names values as publishing would, and counts.

    What goes wrong here is logged, never raised: the message is sent as it is.
    """

    def __init__(self, serializers: Registry, counters: Counters) -> None:
        self._serializers = serializers
        self._counters = counters
        self._seen: OrderedDict[Digest, None] = OrderedDict()

    def value(self, value: Any, native: str, threshold: int) -> None:
        """Count *value* if it is one that would be stored."""
        try:
            payload = self._serializers.encode(value, native)
            if payload.size < threshold:
                return
            digest = pack(payload).digest
        except Exception:
            logger.warning("offload could not have carried a %s", type(value), exc_info=True)
            return
        repeated = digest in self._seen
        self._seen[digest] = None
        self._seen.move_to_end(digest)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        self._counters.add(
            observed_values=1,
            observed_bytes=payload.size,
            observed_repeated_bytes=payload.size if repeated else 0,
        )
