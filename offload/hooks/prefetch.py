"""Fetching ahead: for tasks that wait in a worker, large values go into the node cache.

Celery's main process takes more tasks than its pool has children, and they wait in it.
Meanwhile one thread of it fetches what they will need, so that the child has only to map
it. This can only help: what is not fetched here the child fetches, and reports what fails.
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
from offload.forks import guard_forks
from offload.hooks.celery_internals import body_of_request, is_revoked
from offload.hooks.message import EMBED, refs_to_prefetch
from offload.hooks.runtime import Runtime
from offload.ref import Ref
from offload.stores.processes import PerProcess

__all__ = ("Prefetcher", "install")

logger = logging.getLogger(__name__)

LIMIT = 256
"""Tasks, and values of them, that may wait to be fetched for."""
SOON = 60.0
"""Seconds: what is due later than that is not fetched yet."""
_LOOK = 0.25  # seconds between looks whether tasks were begun, while there is no room
_END = 2.0  # seconds that the end of the process waits for what is under way
_THREAD = "offload-prefetch"


def install() -> None:
    """Look at the tasks that workers of this process receive, of all apps with offload."""
    signals.task_received.connect(_received, weak=False, dispatch_uid="offload-prefetch")


def _received(sender: Any = None, request: Any = None, **_more: Any) -> None:
    runtime = getattr(getattr(request, "app", None), "_offload", None)
    if runtime is not None:
        runtime.part(Prefetcher).offer(request, getattr(sender, "pool", None))


class Prefetcher:
    """Fetches ahead for the tasks of one app, by a thread that begins when it is needed.

    A forked child has its own, which begins with nothing.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._ahead = PerProcess(lambda: _Ahead(runtime))

    def offer(self, request: Any, pool: Any) -> None:
        """Have what a received *request* needs fetched, if it is going to wait for *pool*.

        Never waits, and never raises.
        """
        try:
            note = (body_of_request(request)[2] or {}).get(EMBED)
            if not isinstance(note, dict) or not note.get("refs") or not self._is_on(pool):
                return
            if _will_wait(request, pool) and not self._ahead.get().add(request):
                self._runtime.counters.add(prefetch_dropped=1)
        except Exception:
            logger.debug("nothing is fetched ahead for %r", request, exc_info=True)

    def _is_on(self, pool: Any) -> bool:
        settings = self._runtime.settings
        if settings.mode == "observe" or settings.prefetch == "off":
            return False
        return settings.prefetch == "on" or _is_prefork(pool)


@dataclass(frozen=True)
class _Wanted:
    """A value, and the task that waits for it; this keeps no task alive."""

    request: weakref.ref[Any]
    ref: Ref[Any]

    @property
    def waits(self) -> bool:
        return _waits(self.request())


class _Ahead:
    """What one process fetches ahead."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pid = os.getpid()
        self._ended = False
        self._changed = threading.Condition()
        self._received: deque[weakref.ref[Any]] = deque()
        self._thread: threading.Thread | None = None
        # Of the thread alone:
        self._wanted: list[_Wanted] = []
        self._there: list[_Wanted] = []  # fetched, for tasks that wait still

    def add(self, request: Any) -> bool:
        """Take *request* on; False if too many wait."""
        with self._changed:
            if len(self._received) >= LIMIT:
                return False
            self._received.append(weakref.ref(request))
            self._changed.notify()
            if self._thread is None:
                guard_forks()
                thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)
                thread.start()
                self._thread = thread
                atexit.register(self._end)
        return True

    def _end(self) -> None:
        """Fetch nothing more. What is under way comes to its end, lest half a file stay."""
        if self._thread is None or os.getpid() != self._pid:
            return
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(_END)

    def _run(self) -> None:
        while not self._ended:
            try:
                self._look_at_received()
                while not self._ended and (wanted := self._next()) is not None:
                    self._fetch(wanted)
            except Exception:
                logger.debug("fetching ahead failed", exc_info=True)
                self._wanted = []

    def _look_at_received(self) -> None:
        with self._changed:
            timeout = _LOOK if self._wanted else None
            self._changed.wait_for(lambda: self._received or self._ended, timeout)
            found, self._received = self._received, deque()
        for each in found:
            request = each()
            if _waits(request):
                try:
                    self._want(each, request)
                except Exception:
                    logger.debug("nothing is fetched ahead for %r", request, exc_info=True)

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
        """Return the first value for which there is room, None if there is none."""
        self._wanted = [wanted for wanted in self._wanted if wanted.waits]
        self._there = [there for there in self._there if there.waits]
        if not self._wanted:
            return None
        room = self._runtime.content.reader.prefetch_limit()
        taken = {there.ref.digest: there.ref.size for there in self._there}
        room -= sum(taken.values())
        for at, wanted in enumerate(self._wanted):
            if wanted.ref.digest in taken or wanted.ref.size <= room:
                return self._wanted.pop(at)
        return None

    def _fetch(self, wanted: _Wanted) -> None:
        self._there.append(wanted)
        try:
            self._runtime.content.reader.prefetch(wanted.ref)
        except Exception as exc:
            logger.debug("%r is not fetched ahead", wanted.ref, exc_info=True)
            failed = [wanted]
            self._there.remove(wanted)
            if isinstance(exc, StoreUnavailable):  # it would be for all the others
                failed += self._wanted
                self._wanted = []
            self._runtime.counters.add(prefetch_dropped=len(failed))


def _is_prefork(pool: Any) -> bool:
    module = sys.modules.get("celery.concurrency.prefork")
    return module is not None and isinstance(pool, module.TaskPool)


def _will_wait(request: Any, pool: Any) -> bool:
    """Return whether a request that was just received will not be begun at once."""
    from celery.worker import state

    if request.eta is not None:
        left = _seconds_until(request.eta)
        if left > 0:
            return left <= SOON
    return len(state.reserved_requests) >= (pool.num_processes or 1)


def _waits(request: Any) -> bool:
    """Return whether a request is not begun, and will be as far as is known."""
    from celery.worker import state

    if request is None or request.time_start is not None or request.acknowledged:
        return False
    if request.id in state.revoked or is_revoked(request):
        return False
    if request.expires is not None and _seconds_until(request.expires) < 0:
        return False
    ending = (state.should_stop, state.should_terminate)  # exit codes, of which one is 0
    return all(code is None or code is False for code in ending)


def _seconds_until(moment: datetime) -> float:
    return (moment - datetime.now(moment.tzinfo)).total_seconds()
