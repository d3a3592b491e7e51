"""Counting what happens in this process: in all, and by task and argument."""

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
from typing import Any

from offload.counters.names import (
    BOUNDS,
    NAMES,
    OF_STORE,
    OF_STORE_PREFIX,
    OTHER,
    STEPS,
    Counted,
    size_names,
    time_names,
)
from offload.errors import (
    BlobMissing,
    CodeError,
    IntegrityError,
    SerializationError,
    StoreUnavailable,
)
from offload.tracing import is_set_up, span

__all__ = ("Counters",)

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
