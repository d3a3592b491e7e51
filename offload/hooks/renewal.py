"""Renew the holds of deliveries while their tasks run.

A message's hold lasts as long as the message may wait. A task that runs longer may still read a
reference, or publish the callbacks that its message carries. One thread in each process that runs
tasks waits for the earliest hold that would otherwise expire; tasks that end earlier cost only
bookkeeping.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from offload.errors import OffloadError, StoreUnavailable
from offload.forks import start_thread
from offload.hooks.delivery import Delivery, renewed_for
from offload.hooks.runtime import Runtime
from offload.stores.processes import PerProcess

logger = logging.getLogger(__name__)

_RETRY = 10.0  # seconds until a renewal is retried after a store error
_LONGEST_WAIT = 300.0  # longest wait in seconds, in case the clock is changed


class Renewer:
    """Renews the holds of deliveries while they run.

    A hold is renewed when less than the grace period is left of it, so that a redelivery after a
    crash at any moment finds its values.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._running = PerProcess(lambda: _Running(self._renew_all))

    @contextmanager
    def running(self, delivery: Delivery) -> Iterator[None]:
        """Keep the values of *delivery* from expiring during this block."""
        if delivery.until is None or not delivery.has_refs:
            yield
            return
        running = self._running.get()
        running.add(delivery, delivery.until - self._runtime.grace - self._now())
        try:
            yield
        finally:
            running.remove(delivery)

    def renew_if_due(self, delivery: Delivery) -> None:
        """Renew the holds of a delivery whose message is sent again, if they are due."""
        due = delivery.until is not None and delivery.until - self._runtime.grace <= self._now()
        if due and delivery.has_refs:
            self._renew(delivery)

    def renew_due(self) -> None:
        """Renew the holds that are due in this process."""
        self._renew_all(self._running.get())

    def _renew_all(self, running: _Running) -> float:
        """Renew the holds that are due; return the seconds until the next one is."""
        now, grace = self._now(), self._runtime.grace
        for delivery in running.all():
            if delivery.until is not None and delivery.until - grace <= now:
                self._renew(delivery)
        ends = [each.until for each in running.all() if each.until is not None]
        return max(min(ends, default=now + grace + _LONGEST_WAIT) - grace - now, 0.0)

    def _renew(self, delivery: Delivery) -> None:
        grace = self._runtime.grace
        ttl = renewed_for(grace)
        try:
            delivery.keep(ttl)
        except StoreUnavailable as exc:
            logger.warning("the holds of %r couldn't be renewed yet: %s", delivery.task.name, exc)
            delivery.until = self._now() + grace + _RETRY
            return
        except OffloadError as exc:  # reading the reference raises it where it matters
            logger.warning("%r runs, but a value is lost: %s", delivery.task.name, exc)
        delivery.until = self._now() + ttl

    def _now(self) -> float:
        return self._runtime.content.now()


class _Running:
    """The deliveries that run in this process, and the thread that renews them."""

    def __init__(self, renew: Callable[[_Running], float]) -> None:
        self._renew = renew
        self._deliveries: dict[int, Delivery] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._next = math.inf  # when the next hold is due, by the monotonic clock
        self._sleeps_until = -math.inf

    def all(self) -> list[Delivery]:
        with self._lock:
            return list(self._deliveries.values())

    def add(self, delivery: Delivery, due: float) -> None:
        """Add a delivery whose holds are due in *due* seconds."""
        with self._lock:  # as `_changed` would, in fewer calls
            self._deliveries[id(delivery)] = delivery
            self._next = min(self._next, time.monotonic() + due)
            if self._thread is None:
                with suppress(RuntimeError):  # no more threads: the next task tries again
                    self._thread = start_thread(self._run, "offload-renew")
            elif self._next < self._sleeps_until:
                self._changed.notify()

    def remove(self, delivery: Delivery) -> None:
        with self._lock:
            self._deliveries.pop(id(delivery), None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._next = math.inf
            try:
                wait = self._renew(self)
            except Exception:
                logger.exception("holds of running tasks couldn't be renewed; retrying")
                wait = _RETRY
            with self._changed:
                now = time.monotonic()
                self._next = min(self._next, now + wait)
                self._sleeps_until = min(self._next, now + _LONGEST_WAIT)
                self._changed.wait(self._sleeps_until - now)
                self._sleeps_until = -math.inf
