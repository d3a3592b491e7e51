"""What happened in this process, counted."""

from __future__ import annotations

import os
import threading
from collections import Counter

__all__ = ("NAMES", "Counters")

NAMES = {
    "values_seen": "arguments and results looked at that were not certainly small",
    "values_offloaded": "values that travelled by reference",
    "bytes_offloaded": "serialised bytes of those values",
    "values_deduplicated": "values of which everything was in the store already",
    "values_remembered": "immutable values that were not even hashed again",
    "blobs_uploaded": "blobs written to the store",
    "bytes_uploaded": "plain bytes of those blobs",
    "bytes_stored": "stored bytes of those blobs, after compression",
    "values_fetched": "references resolved from the store",
    "bytes_fetched": "serialised bytes of those values",
    "cache_hits": "large values taken from the node cache, without the store",
    "cache_bytes": "serialised bytes of those values",
    "cache_misses": "large values that the node cache did not have, and that were fetched",
    "cache_unused": "of these, values that it could not keep: no room, or not usable",
    "cache_evicted": "values removed from the node cache to make room",
    "cache_altered": "files of the node cache that were altered, and so dropped",
    "prefetch_done": "large values fetched for tasks that waited; their use is a cache hit",
    "prefetch_bytes": "serialised bytes of those values",
    "prefetch_dropped": "values not fetched so: too many, too large together, or the store failed",
    "values_inline": "small values that travelled within their reference",
    "outage_inline": "values sent in the message because the store was away",
    "refs_refused": "references refused: forged, changed, or of another app",
    "releases_failed": "values that were not released early, and end by their retention",
    "store_retries": "store calls tried again",
    "task_retries": "tasks sent again because the store was away",
    "classes_pushed": "versions of classes and functions written to the store",
    "classes_loaded": "versions of classes and functions loaded from the store",
    "classes_refused": "versions of classes and functions not loaded: not allowed, not trusted",
    "observed_values": "values that would have been offloaded (mode observe)",
    "observed_bytes": "serialised bytes of those values",
    "observed_repeated_bytes": "of these, bytes of values that this process had seen before",
}
"""Every counter and what it counts."""


class Counters:
    """Named whole numbers that only rise, of one process; safe among threads."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def _mine(self) -> Counter[str]:
        """Return this process's counts.

        A forked child begins anew: its parent's lock may have been held at the fork.
        """
        if self._pid != os.getpid():
            self._begin()
        return self._counts

    def add(self, **amounts: int) -> None:
        """Raise each named counter; KeyError for a name that is not in `NAMES`."""
        counts = self._mine()
        with self._lock:
            for name, amount in amounts.items():
                if name not in NAMES:
                    raise KeyError(name)
                counts[name] += amount

    def snapshot(self) -> dict[str, int]:
        """Return all counters, those at zero as well."""
        counts = self._mine()
        with self._lock:
            return {name: counts[name] for name in NAMES}
