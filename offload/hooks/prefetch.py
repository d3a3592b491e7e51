"""Prefetch: fetch large values into the node cache for tasks that wait in a worker.

A worker's main process receives more tasks than its pool has children. While they wait, one of its
threads fetches the values that they will need, so that a child only has to map them. Values that
aren't prefetched are fetched by the child, which also reports errors.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery import signals

from offload.content.manifest import SINGLE
from offload.errors import InvalidRef, StoreUnavailable
from offload.forks import start_thread
from offload.hooks.celery_internals import body_of_request, is_revoked
from offload.hooks.message import EMBED, refs_to_prefetch
from offload.hooks.runtime import Runtime
from offload.ref import Ref
from offload.stores.processes import PerProcess

logger = logging.getLogger(__name__)

LIMIT = 256
"""Tasks, and values, that may wait for the thread."""
SOON = 60.0
"""Seconds before its ETA from which a task's values are fetched."""
_POLL = 0.25  # seconds between checks whether tasks have started while the cache is full
_EXIT_TIMEOUT = 2.0  # seconds that the process's exit waits for a fetch
_THREAD = "offload-prefetch"


def install() -> None:
    """Receive the tasks of this process's workers, for all apps with offload."""
    signals.task_received.connect(_received, weak=False, dispatch_uid="offload-prefetch")


def _received(sender: Any = None, request: Any = None, **_more: Any) -> None:
    runtime = getattr(getattr(request, "app", None), "_offload", None)
    if runtime is not None:
        runtime.part(Prefetcher).offer(request, getattr(sender, "pool", None))


class Prefetcher:
    """Prefetches for the tasks of one app, in a thread that is started when it is needed.

    A forked child has a thread of its own, without the parent's tasks.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._queues = PerProcess(lambda: _Queue(runtime))

    def offer(self, request: Any, pool: Any) -> None:
        """Prefetch the values of a received *request* if it is going to wait for *pool*.

        Never blocks, and never raises.
        """
        try:
            note = (body_of_request(request)[2] or {}).get(EMBED)
            if not isinstance(note, dict) or not note.get("refs") or not self._is_on(pool):
                return
            if self._runtime.options(request.task.name)[0].memo:  # a hit reads nothing
                return
            if _will_wait(request, pool) and not self._queues.get().add(request):
                self._runtime.counters.add(prefetch_dropped=1)
        except Exception:
            logger.debug("nothing is prefetched for %r", request, exc_info=True)

    def _is_on(self, pool: Any) -> bool:
        settings = self._runtime.settings
        if settings.mode == "observe" or settings.prefetch == "off":
            return False
        return settings.prefetch == "on" or _is_prefork(pool)


@dataclass(frozen=True)
class _Wanted:
    """A value, and the task that waits for it, referenced weakly."""

    request: weakref.ref[Any]
    ref: Ref[Any]

    @property
    def waits(self) -> bool:
        return _waits(self.request())


class _Queue:
    """The values that one process prefetches, and its thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pid = os.getpid()
        self._is_stopped = False
        self._changed = threading.Condition()
        self._received: deque[weakref.ref[Any]] = deque()
        self._thread: threading.Thread | None = None
        # Only the thread uses these:
        self._wanted: list[_Wanted] = []
        self._fetched: list[_Wanted] = []  # fetched, for tasks that still wait

    def add(self, request: Any) -> bool:
        """Add a request; return False if too many wait."""
        with self._changed:
            if len(self._received) >= LIMIT:
                return False
            self._received.append(weakref.ref(request))
            self._changed.notify()
            if self._thread is None:
                self._thread = start_thread(self._run, _THREAD)
                atexit.register(self._stop)
        return True

    def _stop(self) -> None:
        """Stop fetching. A fetch in progress is completed, so that no partial file is left."""
        if self._thread is None or os.getpid() != self._pid:
            return
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        self._thread.join(_EXIT_TIMEOUT)

    def _run(self) -> None:
        while not self._is_stopped:
            try:
                self._take_received()
                while not self._is_stopped and (wanted := self._next()) is not None:
                    self._fetch(wanted)
            except Exception:
                logger.debug("prefetching failed", exc_info=True)
                self._wanted = []

    def _take_received(self) -> None:
        with self._changed:
            timeout = _POLL if self._wanted else None
            self._changed.wait_for(lambda: self._received or self._is_stopped, timeout)
            found, self._received = self._received, deque()
        for each in found:
            request = each()
            if _waits(request):
                try:
                    self._want(each, request)
                except Exception:
                    logger.debug("nothing is prefetched for %r", request, exc_info=True)

    def _want(self, each: weakref.ref[Any], request: Any) -> None:
        runtime = self._runtime
        args, kwargs, embed = body_of_request(request)
        wires = refs_to_prefetch(args, kwargs, embed[EMBED], runtime.tasks[request.task.name])
        room = runtime.content.reader.prefetch_limit() if wires else 0
        for wire in wires if room else ():
            try:
                ref = runtime.content.open(wire)
            except InvalidRef:
                continue
            if ref.digest is None or ref.size < SINGLE:
                continue
            if ref.size > room or len(self._wanted) >= LIMIT:
                runtime.counters.add(prefetch_dropped=1)
                continue
            self._wanted.append(_Wanted(each, ref))

    def _next(self) -> _Wanted | None:
        """Return the first value for which the cache has room; None if there is none."""
        self._wanted = [wanted for wanted in self._wanted if wanted.waits]
        self._fetched = [each for each in self._fetched if each.waits]
        if not self._wanted:
            return None
        room = self._runtime.content.reader.prefetch_limit()
        taken = {each.ref.digest: each.ref.size for each in self._fetched}
        room -= sum(taken.values())
        for at, wanted in enumerate(self._wanted):
            if wanted.ref.digest in taken or wanted.ref.size <= room:
                return self._wanted.pop(at)
        return None

    def _fetch(self, wanted: _Wanted) -> None:
        self._fetched.append(wanted)
        try:
            self._runtime.content.reader.prefetch(wanted.ref)
        except Exception as exc:
            logger.debug("%r isn't prefetched", wanted.ref, exc_info=True)
            failed = [wanted]
            self._fetched.remove(wanted)
            if isinstance(exc, StoreUnavailable):  # it would be unavailable for all the others
                failed += self._wanted
                self._wanted = []
            self._runtime.counters.add(prefetch_dropped=len(failed))


def _is_prefork(pool: Any) -> bool:
    module = sys.modules.get("celery.concurrency.prefork")
    return module is not None and isinstance(pool, module.TaskPool)


def _will_wait(request: Any, pool: Any) -> bool:
    """Return whether a request that was just received will not start at once."""
    from celery.worker import state

    if request.eta is not None:
        left = _seconds_until(request.eta)
        if left > 0:
            return left <= SOON
    return len(state.reserved_requests) >= (pool.num_processes or 1)


def _waits(request: Any) -> bool:
    """Return whether a request has not started yet and, as far as is known, will start."""
    from celery.worker import state

    if request is None or request.time_start is not None or request.acknowledged:
        return False
    if request.id in state.revoked or is_revoked(request):
        return False
    if request.expires is not None and _seconds_until(request.expires) < 0:
        return False
    ending = (state.should_stop, state.should_terminate)  # exit codes, one of which is 0
    return all(code is None or code is False for code in ending)


def _seconds_until(moment: datetime) -> float:
    return (moment - datetime.now(moment.tzinfo)).total_seconds()
