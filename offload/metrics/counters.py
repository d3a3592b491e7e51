"""Count what happens in this process: in total, and by task and argument."""

from __future__ import annotations

import os
import threading
import time
import weakref
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple

from offload.errors import (
    BlobMissing,
    CodeError,
    IntegrityError,
    SerializationError,
    StoreUnavailable,
)
from offload.tracing import is_set_up, span

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
    "Counters",
    "size_names",
    "time_names",
)

# -- names

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


# -- counting

_MOST = 2000  # names that are told apart until they are written
_LONGEST = 256  # countings that wait to be added up
_KNOWN = frozenset(NAMES)
_Labels = tuple[str, ...]  # task and argument; or two empty ones and a store

_ERRORS = (
    (StoreUnavailable, "errors_unavailable"),
    (BlobMissing, "errors_missing"),
    (IntegrityError, "errors_altered"),
    (SerializationError, "errors_serialising"),
    (CodeError, "errors_code"),
    (Exception, "errors_other"),
)


_TIMES = {step: time_names(step) for step in STEPS}
_OF = {name: OF_STORE_PREFIX + name for name in OF_STORE}
_TIMES_OF_STORE = {
    step: ([OF_STORE_PREFIX + name for name in names], OF_STORE_PREFIX + sum_)
    for step, (names, sum_) in _TIMES.items()
}
_WITH_STORE = 3  # labels
_OFFLOADED = ("values_offloaded", "bytes_offloaded", "values_deduplicated", "bytes_deduplicated")
_about: ContextVar[tuple[str, str]] = ContextVar("offload_counted_about", default=("", ""))


class _About:
    __slots__ = ("_labels", "_token")

    def __init__(self, labels: tuple[str, str]) -> None:
        self._labels = labels

    def __enter__(self) -> None:
        self._token = _about.set(self._labels)

    def __exit__(self, *_: object) -> None:
        _about.reset(self._token)


class _Timed:
    __slots__ = ("_begun", "_counters", "_span", "_step")

    def __init__(self, counters: Counters, step: str) -> None:
        self._counters = counters
        self._step = step

    def __enter__(self) -> None:
        self._span = span(self._step, *_about.get()) if is_set_up() else None
        if self._span is not None:
            self._span.__enter__()
        self._begun = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            seconds = time.perf_counter() - self._begun
            self._counters._wait((_about.get(), _TIMES[self._step], seconds))
        if self._span is not None:
            self._span.__exit__(kind, error, traceback)


class Counters:
    """Named whole numbers that only rise, of one process; safe among threads.

    Counting is appending to a queue; what is in it is added up when it is long or somebody asks.
    That takes less than half the time of adding each at once, between work on large values.
    """

    def __init__(self) -> None:
        self._listener: Callable[[], None] | None = None
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[_Labels, Any, Any]] = deque()
        self._counts: Counter[str] = Counter()
        self._apart: dict[_Labels, dict[str, int]] = {}
        self._room = _MOST
        self._to_tell = self._listener

    def listen(self, listener: Callable[[], None]) -> None:
        """Call *listener* when the first is counted after a `take`, and now if something is."""
        self._listener = self._to_tell = listener
        if self._waiting or self._apart:
            self._tell()

    def about(self, task: str, argument: str = "") -> AbstractContextManager[None]:
        """Within this, what is counted is counted for a task's argument."""
        return _About((task, argument))

    def add(self, **amounts: int) -> None:
        """Raise each named counter; KeyError for a name that is not in `NAMES`."""
        if not _KNOWN.issuperset(amounts):
            raise KeyError(*amounts.keys() - _KNOWN)
        self._wait((_about.get(), None, amounts))

    def sized(self, size: int, repeated: int) -> None:
        """Count a value by its size.

        Args:
            size: its serialised bytes.
            repeated: those of them that had been there before.
        """
        self._wait((_about.get(), size, repeated))

    def offloaded(self, size: int, repeated: int, *, whole: bool) -> None:
        """Count a value that travels by reference, also by its size.

        Args:
            size, repeated: see `sized`.
            whole: everything of it was in the store already.
        """
        self._wait((_about.get(), _OFFLOADED, (size, repeated, whole)))

    def of_store(self, store: str, **amounts: int) -> None:
        """Count what one store of several did; names as in `OF_STORE`."""
        self._wait((("", "", store), None, {_OF[name]: n for name, n in amounts.items()}))

    def failed(self, error: Exception) -> None:
        """Count an error by its kind."""
        name = next(name for kind, name in _ERRORS if isinstance(error, kind))
        self.add(**{name: 1})

    def timed(self, step: str) -> AbstractContextManager[None]:
        """Count how long this takes, if it ends well; a span of OpenTelemetry in any case."""
        return _Timed(self, step)

    def took(self, step: str, seconds: float, *, store: str = "") -> None:
        """Count how long a step took, or the part of one *store* of several in it.

        KeyError for one that is not in `STEPS`.
        """
        if store:
            self._wait((("", "", store), _TIMES_OF_STORE[step], seconds))
        else:
            self._wait((_about.get(), _TIMES[step], seconds))

    def _wait(self, event: tuple[_Labels, Any, Any]) -> None:
        waiting = self._waiting
        waiting.append(event)
        if self._to_tell is not None:
            self._tell()
        if len(waiting) >= _LONGEST and self._lock.acquire(blocking=False):
            try:
                self._add_up()
            finally:
                self._lock.release()

    def _tell(self) -> None:
        listener, self._to_tell = self._to_tell, None
        if listener is not None:
            listener()

    def _add_up(self) -> None:
        """Add up what waits; only with the lock. Other threads may append meanwhile."""
        waiting = self._waiting
        for _ in range(len(waiting)):
            labels, what, amount = waiting.popleft()
            if what is None:
                self._raise(labels, amount.items())
            elif what is _OFFLOADED:
                size, repeated, whole = amount
                again = size if whole else 0
                self._raise(labels, zip(_OFFLOADED, (1, size, int(whole), again), strict=True))
                self._sized(labels[0], size, repeated)
            elif type(what) is int:
                self._sized(labels[0], what, amount)
            else:
                names, sum_ = what
                bound = names[bisect_left(BOUNDS, amount)]
                about = labels if len(labels) == _WITH_STORE else (labels[0], "")
                self._raise(about, ((bound, 1), (sum_, int(amount * 1e6))))

    def _sized(self, task: str, size: int, repeated: int) -> None:
        self._raise((task, ""), zip(size_names(size), (1, size, repeated), strict=True))

    def _raise(self, labels: _Labels, amounts: Iterable[tuple[str, int]]) -> None:
        counts = self._apart.get(labels, {})
        for name, amount in amounts:
            if name in counts:
                counts[name] += amount
            elif amount:
                self._first(labels, name, amount)

    def _first(self, labels: _Labels, name: str, amount: int) -> None:
        """Count a name that is new with its labels, if there is room for it."""
        if self._room <= 0:
            labels = (OTHER, "")
        self._room -= 1
        counts = self._apart.setdefault(labels, {})
        counts[name] = counts.get(name, 0) + amount

    def snapshot(self) -> dict[str, int]:
        """Return all counters, those at zero as well."""
        with self._lock:
            self._add_up()
            found = self._counts.copy()
            for counts in self._apart.values():
                found.update(counts)
        return {name: found[name] for name in NAMES}

    def take(self) -> dict[Counted, int]:
        """Return what was counted since this was called last."""
        with self._lock:
            self._to_tell = self._listener  # first, so that none is missed
            self._add_up()
            taken, self._apart, self._room = self._apart, {}, _MOST
            for counts in taken.values():
                self._counts.update(counts)
        return {
            Counted(name, *labels): amount
            for labels, counts in taken.items()
            for name, amount in counts.items()
        }


_all: weakref.WeakSet[Counters] = weakref.WeakSet()


def _begin_all() -> None:
    for counters in list(_all):
        counters._begin()


if hasattr(os, "register_at_fork"):
    # A forked child begins anew: its parent's lock may have been held at the fork.
    os.register_at_fork(after_in_child=_begin_all)
