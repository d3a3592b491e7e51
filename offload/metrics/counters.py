"""Count events in this process: in total, and by task and argument."""

from __future__ import annotations

import os
import threading
import time
import weakref
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from offload.errors import (
    BlobMissing,
    CodeError,
    IntegrityError,
    SerializationError,
    StoreUnavailable,
)
from offload.metrics import otel
from offload.metrics.latest import LatestErrors
from offload.metrics.otel import Instruments, is_set_up, note_hit, note_value, span

if TYPE_CHECKING:
    from typing_extensions import Self

# -- names

NAMES = {
    "values_seen": "arguments and results inspected, except those that are certainly small",
    "values_offloaded": "values sent by reference",
    "bytes_offloaded": "serialized bytes of values sent by reference",
    "bytes_deduplicated": "serialized bytes of values that were completely in the store already",
    "values_deduplicated": "values that were completely in the store already",
    "values_remembered": "immutable values whose digest was cached",
    "blobs_uploaded": "blobs written to the store",
    "bytes_uploaded": "uncompressed bytes of blobs written to the store",
    "bytes_stored": "bytes of blobs written to the store, after compression",
    "values_fetched": "references resolved from the store",
    "bytes_fetched": "serialized bytes of references resolved from the store",
    "cache_hits": "large values read from the node cache instead of the store",
    "cache_bytes": "serialized bytes of values read from the node cache",
    "cache_misses": "large values fetched because they were not in the node cache",
    "cache_unused": "values that could not be cached: no room, or node cache unusable",
    "cache_written": "large values put into the node cache by the process that stored them",
    "cache_written_bytes": "serialized bytes of values put into the node cache when stored",
    "cache_unwritten": "values stored but not put into the node cache: no room, or unusable",
    "cache_evicted": "values removed from the node cache to make room",
    "cache_altered": "node cache files deleted because their content had changed",
    "prefetch_done": "large values prefetched for waiting tasks; reading them is a cache hit",
    "prefetch_bytes": "serialized bytes of values prefetched for waiting tasks",
    "prefetch_dropped": "values not prefetched: too many, too large in total, or a store error",
    "values_inline": "small values sent inside their reference",
    "outage_inline": "values sent in the message because the store was unavailable",
    "failures_truncated": "exceptions and tracebacks truncated because the store failed",
    "refs_refused": "references refused: forged, altered, or from another app",
    "releases_failed": "values whose release failed; they expire after their retention",
    "errors_unavailable": "values not stored or fetched because the store was unavailable",
    "errors_missing": "values no longer in the store",
    "errors_altered": "values altered in the store",
    "errors_serialising": "values that could not be serialized, or were too large",
    "errors_code": "values whose class could not be shipped or loaded",
    "errors_other": "values that failed for other reasons",
    "store_retries": "store calls retried",
    "task_retries": "tasks retried because the store was unavailable",
    "memo_hits": "calls of memo tasks and functions that returned a remembered result",
    "memo_misses": "computations by memo tasks and functions",
    "memo_waits": "times that a call waited for an equal call: sent back to the queue, or blocked",
    "memo_milliseconds_saved": "durations of the computations that hits saved",
    "memo_uncached": "calls of memo tasks and functions that could not be looked up or remembered",
    "memo_fenced": "results not remembered: another process took over, or they were forgotten",
    "catalog_saves": "versions saved in the catalog",
    "catalog_conflicts": "versions not saved in the catalog because they existed",
    "catalog_loads": "objects loaded from the catalog",
    "catalog_late": "late arguments of tasks that were looked up in the catalog",
    "catalog_refs": "references made to versions in the catalog, to pass to tasks",
    "catalog_removed": "versions removed from the catalog",
    "classes_pushed": "versions of classes and functions written to the store",
    "classes_loaded": "versions of classes and functions loaded from the store",
    "classes_refused": "versions of classes and functions refused: not allowed or not trusted",
    "observed_values": "values that would have been offloaded (mode observe)",
    "observed_bytes": "serialized bytes of values that would have been offloaded",
    "observed_repeated_values": "observed values that the process had seen before",
    "observed_repeated_bytes": "observed bytes that the process had seen before",
}
"""Description of each counter."""

OF_STORE = {
    "blobs_uploaded": "blobs written to the store",
    "bytes_stored": "stored bytes of blobs written to the store",
    "blobs_fetched": "blobs read from the store",
    "bytes_fetched": "stored bytes of blobs read from the store",
    "calls_failed": "calls that failed or were refused",
}
"""Description of each counter kept per store if there are several stores."""

OF_STORE_PREFIX = "of_store_"


BY_TASK = frozenset(
    {
        *("values_seen", "values_offloaded", "values_deduplicated", "values_fetched"),
        *("bytes_offloaded", "bytes_uploaded", "bytes_stored", "bytes_fetched"),
        *("cache_hits", "cache_misses", "observed_values", "observed_bytes"),
        *(name for name in NAMES if name.startswith(("memo_", "catalog_"))),
        *(name for name in NAMES if name.startswith("errors_")),
    }
)
"""Counters whose history is kept by task; of all others, only the total has a history."""

OF_WORKER = frozenset(
    {
        *("values_fetched", "bytes_fetched", "cache_hits", "cache_misses", "cache_bytes"),
        *("prefetch_done", "prefetch_bytes", "prefetch_dropped"),
        *(name for name in NAMES if name.startswith("errors_")),
    }
)
"""Counters whose history is kept by worker, summed over its processes."""
WORKER_PREFIX = "worker:"
"""Prefix of a worker's node name in `Counted.store`."""

OF_OBJECT = frozenset({"catalog_loads", "catalog_late", "catalog_refs", "cache_hits"})
"""Counters whose history is kept by catalog object; hits are loads from this machine's copies."""
OBJECT_PREFIX = "object:"
"""Prefix of an object's bucket and name in `Counted.store`."""

STEPS = {
    "serialize": "serializing a value",
    "hash": "computing its digest",
    "upload": "checking the store for its blobs, and writing those that are missing",
    "fetch": "reading it from the store or the node cache",
    "decode": "deserializing a value",
}
"""Steps that are timed."""

BOUNDS = (0.001, 0.004, 0.016, 0.064, 0.256, 1.024, 4.096, 16.384)
"""Upper bounds, in seconds, of the buckets for a step's times; the last bucket is unbounded."""

SIZES = tuple(1 << bits for bits in range(10, 23))
"""Lower bounds of size classes, from 1 KiB to 4 MiB; smaller values have a class of their own."""

OTHER = "(other)"
"""Task label of events that are counted after the limit of labels is reached."""


class Counted(NamedTuple):
    """Name and labels of a counter.

    Attributes:
        name: one of `NAMES`; for times of a step, see `time_names`; for a size class, see
            `size_names`. For one of several stores, ``of_store_<name>``, which isn't included in
            any other counter.
        task, argument: the task's and argument's name; "" if there is none.
        store: the URL of one of several stores; or `OBJECT_PREFIX` with the bucket and name of a
            catalog object; or `WORKER_PREFIX` with a worker's node name; else "".
    """

    name: str
    task: str = ""
    argument: str = ""
    store: str = ""


_SIZE_NAMES = [
    (f"size_{exponent}", f"size_{exponent}_bytes", f"size_{exponent}_repeated")
    for exponent in [0] * 11 + list(range(10, 23))
]  # indexed by the bit length of the size


def size_names(size: int) -> tuple[str, str, str]:
    """Return the counters for values of *size* bytes.

    They count the values, their bytes, and their repeated bytes, which were stored or seen before.
    ``size_16``, ``size_16_bytes``, and ``size_16_repeated`` count values of at least 2**16 bytes
    and less than twice that. ``size_0`` counts values below the first of `SIZES`; the last class
    is unbounded.
    """
    return _SIZE_NAMES[min(size.bit_length(), len(_SIZE_NAMES) - 1)]


def time_names(step: str) -> tuple[list[str], str]:
    """Return the counters for times of a *step*: one per bucket, and the sum in microseconds.

    There is a bucket for each of `BOUNDS`, and one for longer times.
    """
    return [f"{step}_seconds_{n}" for n in range(len(BOUNDS) + 1)], f"{step}_microseconds"


# -- counting

_MOST = 2000  # maximum number of distinct counters between two writes
_OBJECTS = 1000  # maximum number of these for catalog objects
_LONGEST = 256  # length at which queued events are added up
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
_OF = {name: OF_STORE_PREFIX + name for name in (*OF_STORE, *OF_OBJECT)}
_TIMES_OF_STORE = {
    step: ([OF_STORE_PREFIX + name for name in names], OF_STORE_PREFIX + sum_)
    for step, (names, sum_) in _TIMES.items()
}
_WITH_STORE = 3  # labels
_OFFLOADED = ("values_offloaded", "bytes_offloaded", "values_deduplicated", "bytes_deduplicated")
about_now: ContextVar[tuple[str, str]] = ContextVar("offload_counted_about", default=("", ""))
"""The task and argument that label events in this context. On hot paths, set it directly: that is
faster than `Counters.about`."""


_object_now: ContextVar[str] = ContextVar("offload_counted_object", default="")


class About:
    """Label all events within the block with a task and argument."""

    __slots__ = ("_labels", "_token")

    def __init__(self, task: str, argument: str = "") -> None:
        self._labels = task, argument

    def __enter__(self) -> None:
        self._token = about_now.set(self._labels)

    def __exit__(self, *_: object) -> None:
        about_now.reset(self._token)


class Timed:
    """Context manager that times and traces a step."""

    __slots__ = ("_active", "_begun", "_counters", "_span", "_step")

    def __init__(self, counters: Counters, step: str) -> None:
        self._counters = counters
        self._step = step

    def __enter__(self) -> Self:
        self._span = span(self._step, *about_now.get()) if is_set_up() else None
        self._active = None if self._span is None else self._span.__enter__()
        self._begun = time.perf_counter()
        return self

    def note(
        self, size: int | None = None, digest: str | None = None, *, hit: bool | None = None
    ) -> None:
        """Describe the value in the span, if tracing is on; see `otel.note_value`."""
        if self._active is not None:
            note_value(self._active, size, digest, hit=hit)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            seconds = time.perf_counter() - self._begun
            self._counters._wait((about_now.get(), _TIMES[self._step], seconds))
        if self._span is not None:
            self._span.__exit__(kind, error, traceback)


class Counters:
    """Named counters of one process, which only increase. Thread-safe.

    Counting appends an event to a queue. Events are added up when the queue is long or counters
    are read, which takes less than half the time of adding up each event at once.

    Attributes:
        errors: the latest errors that aren't written yet.
    """

    about = About

    def __init__(self) -> None:
        self._listener: Callable[[], None] | None = None
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[_Labels, Any, Any]] = deque()
        self._counts: Counter[str] = Counter()
        self._apart: dict[_Labels, dict[str, int]] = {}
        self._room, self._objects = _MOST, _OBJECTS
        self._pending_listener = self._listener
        self.errors = LatestErrors()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call *listener* at the first event after each `take`, and now if there are events."""
        self._listener = self._pending_listener = listener
        if self._waiting or self._apart:
            self._notify()

    def add(self, **amounts: int) -> None:
        """Increase counters by name. Raises KeyError for a name that isn't in `NAMES`."""
        if not _KNOWN.issuperset(amounts):
            raise KeyError(*amounts.keys() - _KNOWN)
        self._wait((about_now.get(), None, amounts))

    def sized(self, size: int, repeated: int) -> None:
        """Count a value by its size.

        Args:
            size: its serialized bytes.
            repeated: how many of them were stored or seen before.
        """
        self._wait((about_now.get(), size, repeated))

    def offloaded(self, size: int, repeated: int, *, whole: bool) -> None:
        """Count a value that is sent by reference, also by its size.

        Args:
            size, repeated: see `sized`.
            whole: whether all of the value was already in the store.
        """
        self._wait((about_now.get(), _OFFLOADED, (size, repeated, whole)))

    def of_store(self, store: str, **amounts: int) -> None:
        """Increase counters, named as in `OF_STORE`, of one of several stores."""
        self._wait((("", "", store), None, {_OF[name]: n for name, n in amounts.items()}))

    def of_object(self, bucket: str, name: str, **amounts: int) -> None:
        """Increase counters, named as in `OF_OBJECT`, in total and for a catalog object."""
        self.add(**amounts)
        self._of_object(f"{OBJECT_PREFIX}{bucket}/{name}", amounts)

    def _of_object(self, label: str, amounts: Mapping[str, int]) -> None:
        self._wait((("", "", label), None, {_OF[name]: n for name, n in amounts.items()}))

    @contextmanager
    def loading(self, bucket: str, name: str) -> Iterator[None]:
        """Count a catalog object as loaded if the block succeeds; see also `object_hit`."""
        token = _object_now.set(f"{OBJECT_PREFIX}{bucket}/{name}")
        try:
            yield
        finally:
            _object_now.reset(token)
        self.of_object(bucket, name, catalog_loads=1)

    def object_hit(self) -> None:
        """Count the object being loaded, if any, as read from a copy on this machine."""
        label = _object_now.get()
        if label:
            self._of_object(label, {"cache_hits": 1})

    def failed(self, error: Exception) -> None:
        """Count an error by its kind."""
        name = next(name for kind, name in _ERRORS if isinstance(error, kind))
        self.errors.note(name, *about_now.get(), error)
        self.add(**{name: 1})

    def timed(self, step: str) -> Timed:
        """Return a context manager that times a step, if it succeeds, and traces it."""
        return Timed(self, step)

    def cache_hit(self, size: int, digest: str) -> None:
        """Count and trace a value of *size* bytes that was read from the node cache."""
        self.add(cache_hits=1, cache_bytes=size)
        self.object_hit()
        if is_set_up():
            note_hit(*about_now.get(), size, digest)

    def took(self, step: str, seconds: float, *, store: str = "") -> None:
        """Record the duration of a step, or the time that one of several stores took for it.

        Raises KeyError for a step that isn't in `STEPS`.
        """
        if store:
            self._wait((("", "", store), _TIMES_OF_STORE[step], seconds))
        else:
            self._wait((about_now.get(), _TIMES[step], seconds))

    def _wait(self, event: tuple[_Labels, Any, Any]) -> None:
        waiting = self._waiting
        waiting.append(event)
        if otel.active:
            _export(*event)
        if self._pending_listener is not None:
            self._notify()
        if len(waiting) >= _LONGEST and self._lock.acquire(blocking=False):
            try:
                self._add_up()
            finally:
                self._lock.release()

    def _notify(self) -> None:
        listener, self._pending_listener = self._pending_listener, None
        if listener is not None:
            listener()

    def _add_up(self) -> None:
        """Add up queued events. Requires the lock; other threads may append meanwhile."""
        waiting = self._waiting
        for _ in range(len(waiting)):
            labels, what, amount = waiting.popleft()
            if what is None:
                self._raise(labels, amount.items())
            elif what is _OFFLOADED:
                size, repeated, whole = amount
                self._raise(labels, _offloaded(size, whole=whole))
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
        """Count a new name with its labels, or as `OTHER` if there are too many."""
        if len(labels) == _WITH_STORE and labels[-1].startswith(OBJECT_PREFIX):
            if self._objects <= 0:
                labels = ("", "", OBJECT_PREFIX + OTHER)
            self._objects -= 1
        else:
            if self._room <= 0:
                labels = (OTHER, "")
            self._room -= 1
        counts = self._apart.setdefault(labels, {})
        counts[name] = counts.get(name, 0) + amount

    def snapshot(self) -> dict[str, int]:
        """Return all counters, including those at zero."""
        with self._lock:
            self._add_up()
            found = self._counts.copy()
            for counts in self._apart.values():
                found.update(counts)
        return {name: found[name] for name in NAMES}

    def take(self) -> dict[Counted, int]:
        """Return the counts since the last call, without zeros."""
        with self._lock:
            self._pending_listener = self._listener  # first, so that no event is missed
            self._add_up()
            taken, self._apart, self._room, self._objects = self._apart, {}, _MOST, _OBJECTS
            for counts in taken.values():
                self._counts.update(counts)
        return {
            Counted(name, *labels): amount
            for labels, counts in taken.items()
            for name, amount in counts.items()
        }


def _offloaded(size: int, *, whole: bool) -> Iterable[tuple[str, int]]:
    """Return the counters to increase for a value that is sent by reference, with amounts."""
    return zip(_OFFLOADED, (1, size, int(whole), size if whole else 0), strict=True)


def _export(labels: _Labels, what: Any, amount: Any) -> None:
    """Record an event as OpenTelemetry metrics."""
    instruments = _instruments()
    if what is None:
        instruments.count(labels, amount.items())
    elif what is _OFFLOADED:
        size, _, whole = amount
        instruments.count(labels, _offloaded(size, whole=whole))
        instruments.size(labels, size)
    elif type(what) is int:
        instruments.size(labels, what)
    else:
        step = what[1].removeprefix(OF_STORE_PREFIX).removesuffix("_microseconds")
        instruments.time(labels, step, amount)


@cache
def _instruments() -> Instruments:
    from opentelemetry.metrics import get_meter

    sizes = [bound - 1 for bound in SIZES]
    meter = get_meter("offload")
    return Instruments(meter, NAMES, OF_STORE, OF_STORE_PREFIX, times=BOUNDS, sizes=sizes)


_all: weakref.WeakSet[Counters] = weakref.WeakSet()


def _reset_all() -> None:
    for counters in list(_all):
        counters._reset()


if hasattr(os, "register_at_fork"):
    # A forked child starts from zero; its parent's lock may have been held at the fork.
    os.register_at_fork(after_in_child=_reset_all)
