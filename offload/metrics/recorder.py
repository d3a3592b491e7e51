"""Write a process's counters to the store."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from celery import signals

from offload.errors import OffloadError, StoreError
from offload.forks import start_thread
from offload.metrics.counters import (
    BY_TASK,
    OBJECT_PREFIX,
    OF_STORE_PREFIX,
    OF_WORKER,
    WORKER_PREFIX,
    Counted,
    Counters,
)
from offload.metrics.latest import ErrorLog, error_log_of
from offload.metrics.storage import has_counters, sums_of
from offload.stores.processes import PerProcess
from offload.stores.protocols import Store
from offload.stores.sums import LABEL, CounterBatch, Sums

logger = logging.getLogger(__name__)

_SOON = 10.0  # seconds within which an error is written, even if the interval is longer
_PATIENCE = 2.0  # seconds that statistics may delay the exit of a process
_THREAD = "offload-stats"
_LONGEST = 200  # characters of a task's or argument's name


class Recorder:
    """Writes counts to a store, at most once every *interval* seconds.

    Batches of counts piggyback on other requests to the store. If there are none, or if they can't
    carry a batch, a thread writes counts that have waited for *interval*. The thread exists only
    while counts wait, and a fork doesn't inherit it. It writes errors within ten seconds, even if
    *interval* is longer, because alerts depend on them. If a process is killed, counts since the
    last write are lost.

    Args:
        behind: always write in the thread, so that no caller sees an error or timeout of the
            store. The process's exit waits for the thread, for at most two seconds.
        clock: returns monotonic seconds.
        sleep: waits for a number of seconds; the default returns early if the process exits.

    Attributes:
        worker: node name of the worker that this process belongs to; "" if it isn't a worker.
            Forked children inherit it.
    """

    def __init__(
        self,
        counters: Counters,
        interval: float,
        *,
        behind: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] | None = None,
    ) -> None:
        self._sums: Sums | None = None
        self._log: ErrorLog | None = None
        self.worker = ""
        self._counters = counters
        self._interval = interval
        self._behind = behind
        self._clock = clock
        self._sleep = sleep
        begun = clock()
        self._states = PerProcess(lambda: _State(begun + interval))

    def attach(self, store: Store) -> None:
        """Write to *store* from now on, and when each process exits."""
        if self._interval and has_counters(store):
            self._sums = sums_of(store)
            self._log = error_log_of(store)
            if self._sums.piggybacks and not self._behind:
                self._sums.piggyback(self)
            self._counters.listen(self._write_later)
            _recorders.add(self)

    def next_batch(self) -> CounterBatch | None:
        state = self._states.get()
        if self._clock() < state.due or not state.lock.acquire(blocking=False):
            return None
        try:
            state.due = self._clock() + self._interval
            return self._take_batch(state)
        finally:
            state.lock.release()

    def requeue(self, batch: CounterBatch) -> None:
        self._states.get().requeued.append(batch)

    def write(self) -> None:
        """Write the remaining counts now, before the process exits; if that fails, drop them."""
        state, sums = self._states.get(), self._sums
        if sums is None or state.requeued:  # `requeued`: the store was unavailable a moment ago
            return
        try:
            self._write(state, sums)
        except StoreError as exc:
            logger.info("some statistics were lost: %s", exc)

    def end(self) -> None:
        """Write the remaining counts and mark them as complete, in at most two seconds."""
        _end([self])

    def start_end(self) -> threading.Thread | None:
        """Start the thread that writes the remaining counts, and return it; None if not needed."""
        state = self._states.get()
        if not self._behind:
            with suppress(RuntimeError):  # Python 3.12 can't start threads while it exits
                return start_thread(self._write_last, _THREAD)
            # Without a thread, the counts aren't marked as complete; readers find out by time.
            # Writing in this thread could block the process's exit if the store hangs.
            state.is_handed_over = True
        state.ending.set()
        return state.writer

    def _write_last(self) -> None:
        self._states.get().end(_PATIENCE, to_write=False)
        self.write()
        self._mark_complete()

    def _mark_complete(self) -> None:
        if self._sums is not None:
            try:
                self._sums.end()
            except StoreError as exc:
                logger.info("cannot mark statistics as complete: %s", exc)

    def _write_later(self) -> None:
        """Start a thread that writes after the interval; the first event after a write calls it."""
        state = self._states.get()
        state.since = self._clock()
        if state.expect_writer():
            try:
                state.writer = start_thread(self._write_soon, _THREAD, state)
            except RuntimeError:  # too many threads, or the process is exiting
                state.writer = None
                state.stop_expecting_writer()

    def _write_soon(self, state: _State) -> None:
        since = state.since
        self._wait_to_write(state, self._interval)
        while True:
            while since != state.since and not state.ending.is_set() and not self._has_errors:
                since = state.since  # another request carried the earlier counts
                self._wait_to_write(state, since + self._interval - self._clock())
            state.stop_expecting_writer()
            if state.ending.is_set() and not (self._behind or state.is_handed_over):
                return  # `end` writes
            try:
                if self._sums is not None:
                    self._write(state, self._sums)
            except OffloadError as exc:
                logger.info("cannot write statistics, retrying later: %s", exc)
                if not state.ending.is_set() and state.expect_writer():
                    self._wait_to_write(state, self._interval)
                    continue
            if state.ending.is_set():
                self._mark_complete()
            return

    def _wait_to_write(self, state: _State, seconds: float) -> None:
        """Wait for *seconds*, but at most `_SOON` if there is an error to write."""
        wait = self._sleep or state.ending.wait
        while seconds > 0 and not state.ending.is_set():
            wait(min(seconds, _SOON))
            if self._has_errors:
                return
            seconds -= _SOON

    def _write(self, state: _State, sums: Sums) -> None:
        """Write everything; a batch that can't be written is requeued."""
        while True:
            with state.lock:
                state.due = self._clock() + self._interval
                batch = self._take_batch(state)
            if batch is None:
                break
            try:
                sums.add(batch)
            except OffloadError:
                self.requeue(batch)
                raise
        self._write_errors()

    @property
    def _has_errors(self) -> bool:
        """Whether errors wait to be written; their texts don't piggyback on requests."""
        return bool(self._counters.errors)

    def _write_errors(self) -> None:
        log = self._log
        taken = self._counters.errors.take()
        if not taken or log is None:
            return
        written = False
        try:
            written = log.add(taken)
        finally:
            if not written:  # other processes swapped first, or the store failed
                self._counters.errors.requeue(taken)

    def _take_batch(self, state: _State) -> CounterBatch | None:
        if state.requeued:
            return state.requeued.pop()
        taken = self._counters.take()
        if not taken:
            return None
        state.number += 1
        total: Counter[str] = Counter()
        series: Counter[str] = Counter()
        for what, amount in taken.items():
            if what.store.startswith(OBJECT_PREFIX):  # totals never expire, but objects come and go
                series[_field_name(what)] += amount
                continue
            total[_field_name(what)] += amount
            task = what.task if what.name in BY_TASK else ""
            series[_field_name(Counted(what.name, task, "", what.store))] += amount
            if self.worker and what.name in OF_WORKER:
                series[_field_name(of_worker(what.name, self.worker))] += amount
        return CounterBatch(state.process, state.number, total, series)


_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _write_all(**_signal: Any) -> None:
    _end(list(_recorders))


def _end(recorders: Iterable[Recorder]) -> None:
    deadline = time.monotonic() + _PATIENCE
    threads = [thread for each in recorders if (thread := each.start_end()) is not None]
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0.0))
    if any(thread.is_alive() for thread in threads):
        logger.info("some statistics were lost: the store is too slow")


atexit.register(_write_all)
signals.worker_process_shutdown.connect(_write_all, weak=False)  # children skip atexit


class _State:
    def __init__(self, now: float) -> None:
        self.process = f"{os.getpid()}-{secrets.token_hex(6)}"
        self.number = 0
        self.due = now  # time of the next write
        self.since = now  # time of the first event that isn't written yet
        self.requeued: list[CounterBatch] = []
        self.lock = threading.Lock()
        self.writer: threading.Thread | None = None
        self.ending = threading.Event()
        self._writing = threading.Lock()
        self.is_handed_over = False  # whether the writer also writes the remaining counts
        self._is_expected = False

    def expect_writer(self) -> bool:
        """Note that a write is due; return whether it is the first one."""
        with self._writing:
            was, self._is_expected = self._is_expected, True
            return not was

    def stop_expecting_writer(self) -> None:
        with self._writing:
            self._is_expected = False

    def end(self, seconds: float, *, to_write: bool) -> bool:
        """Stop the thread; return whether it stopped within *seconds*.

        Args:
            to_write: let it write once more, instead of only finishing the current write.
        """
        self.ending.set()
        if self.writer is not None and (to_write or not self._is_expected):
            self.writer.join(seconds)
        return self.writer is None or not self.writer.is_alive()


def of_worker(name: str, worker: str) -> Counted:
    """Return the counter *name* of a worker, given its node name."""
    return Counted(OF_STORE_PREFIX + name, "", "", WORKER_PREFIX + worker[:_LONGEST])


def _field_name(what: Counted) -> str:
    labels = (what.task[:_LONGEST], what.argument[:_LONGEST], *filter(None, (what.store,)))
    return LABEL.join((what.name, *(label.replace(LABEL, " ") for label in labels)))
