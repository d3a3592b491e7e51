"""What is counted: names, and what they mean."""

from __future__ import annotations

from typing import NamedTuple

__all__ = (
    "BOUNDS",
    "BY_TASK",
    "NAMES",
    "OF_STORE",
    "OF_STORE_PREFIX",
    "OTHER",
    "SIZES",
    "STEPS",
    "Counted",
    "size_names",
    "time_names",
)

NAMES = {
    "values_seen": "arguments and results looked at that were not certainly small",
    "values_offloaded": "values that travelled by reference",
    "bytes_offloaded": "serialised bytes of values that travelled by reference",
    "bytes_deduplicated": "serialised bytes of values of which everything was in the store already",
    "values_deduplicated": "values of which everything was in the store already",
    "values_remembered": "immutable values that were not even hashed again",
    "blobs_uploaded": "blobs written to the store",
    "bytes_uploaded": "plain bytes of blobs written to the store",
    "bytes_stored": "bytes of blobs written to the store, after compression",
    "values_fetched": "references resolved from the store",
    "bytes_fetched": "serialised bytes of references resolved from the store",
    "cache_hits": "large values taken from the node cache, without the store",
    "cache_bytes": "serialised bytes of values taken from the node cache",
    "cache_misses": "large values that the node cache did not have, and that were fetched",
    "cache_unused": "values that the node cache could not keep: no room, or not usable",
    "cache_evicted": "values removed from the node cache to make room",
    "cache_altered": "files of the node cache that were altered, and so dropped",
    "prefetch_done": "large values fetched for tasks that waited; their use is a cache hit",
    "prefetch_bytes": "serialised bytes of values fetched for tasks that waited",
    "prefetch_dropped": "values not fetched so: too many, too large together, or the store failed",
    "values_inline": "small values that travelled within their reference",
    "outage_inline": "values sent in the message because the store was away",
    "refs_refused": "references refused: forged, changed, or of another app",
    "releases_failed": "values that were not released early, and end by their retention",
    "errors_unavailable": "values not stored or fetched because the store was away",
    "errors_missing": "values that were not in the store any more",
    "errors_altered": "values that were altered in the store",
    "errors_serialising": "values that could not be carried, or were too large",
    "errors_code": "values whose class could not be shipped or loaded",
    "errors_other": "values that failed for other reasons",
    "store_retries": "store calls tried again",
    "task_retries": "tasks sent again because the store was away",
    "classes_pushed": "versions of classes and functions written to the store",
    "classes_loaded": "versions of classes and functions loaded from the store",
    "classes_refused": "versions of classes and functions not loaded: not allowed, not trusted",
    "observed_values": "values that would have been offloaded (mode observe)",
    "observed_bytes": "serialised bytes of values that would have been offloaded",
    "observed_repeated_values": "of those, values that the process had seen before",
    "observed_repeated_bytes": "of those bytes, those that the process had seen before",
}
"""Every counter and what it counts."""

OF_STORE = {
    "blobs_uploaded": "blobs written to it",
    "bytes_stored": "bytes of blobs written to it",
    "blobs_fetched": "blobs read from it",
    "bytes_fetched": "bytes of blobs read from it, as they are stored",
    "calls_failed": "calls that it did not answer, or refused",
}
"""What is counted by store, where there are several; of a single one it follows from `NAMES`."""

OF_STORE_PREFIX = "of_store_"


BY_TASK = frozenset(
    {
        *("values_seen", "values_offloaded", "values_deduplicated", "values_fetched"),
        *("bytes_offloaded", "bytes_uploaded", "bytes_stored", "bytes_fetched"),
        *("cache_hits", "cache_misses", "observed_values", "observed_bytes"),
        *(name for name in NAMES if name.startswith("errors_")),
    }
)
"""What is told apart by task over time, too; of all else only the sum."""

STEPS = {
    "serialise": "making bytes of a value",
    "hash": "naming its content",
    "upload": "asking the store for it, and writing what is missing",
    "fetch": "reading it from the store or the node cache",
    "decode": "making a value of bytes",
}
"""What is timed."""

BOUNDS = (0.001, 0.004, 0.016, 0.064, 0.256, 1.024, 4.096, 16.384)
"""Seconds up to which each but the last of a step's times are counted together."""

SIZES = tuple(1 << bits for bits in range(10, 23))
"""Bytes from 1 KiB to 4 MiB: where classes of sizes begin, besides the one of what is smaller."""

OTHER = "(other)"
"""The task of what is counted when there are too many."""


class Counted(NamedTuple):
    """What is counted apart.

    Attributes:
        name: one of `NAMES`; or of a step of `STEPS`: ``<step>_seconds_<number of its bound>`` and
            ``<step>_microseconds``, which add up; or of a class of sizes, see `size_names`.
            Where it is of one store of several: ``of_store_<name>``, not part of any other.
        task, argument: "" where it is about none.
        store: its URL; "" for all else.
    """

    name: str
    task: str = ""
    argument: str = ""
    store: str = ""


_SIZE_NAMES = [
    (f"size_{exponent}", f"size_{exponent}_bytes", f"size_{exponent}_repeated")
    for exponent in [0] * 11 + list(range(10, 23))
]  # by bits of the size


def size_names(size: int) -> tuple[str, str, str]:
    """Return the names under which values of *size* bytes are counted: how many they are, their
    bytes, and those of their bytes that had been there before.

    ``size_16``, ``size_16_bytes`` and ``size_16_repeated`` are of 2**16 bytes to less than twice
    that, ``size_0`` is below the first of `SIZES`, and the last of them has no end.
    """
    return _SIZE_NAMES[min(size.bit_length(), len(_SIZE_NAMES) - 1)]


def time_names(step: str) -> tuple[list[str], str]:
    """Return the names under which times of a *step* are counted: how many each of `BOUNDS`, and
    what is longer, has; and their sum in microseconds.
    """
    return [f"{step}_seconds_{n}" for n in range(len(BOUNDS) + 1)], f"{step}_microseconds"
