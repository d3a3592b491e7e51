"""Keep the values of running tasks: their messages' holds are renewed before they expire.

A message's hold lasts as long as the message may wait. A task that runs longer may still read a
reference, or publish the callbacks its message carries. One thread in each process that runs
tasks waits for the earliest hold that would otherwise expire; tasks that end before that cost
nothing but the bookkeeping.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from offload.errors import OffloadError, StoreUnavailable
from offload.forks import guard_forks
from offload.hooks.delivery import Delivery
from offload.hooks.runtime import Runtime
from offload.stores.processes import PerProcess

__all__ = ("Renewer", "renewed_for")

logger = logging.getLogger(__name__)

_STEP = 0.5
"""Share of the grace by which a renewed hold outlasts the time that a redelivery needs."""
_LEAST = 30.0  # seconds between two renewals of one hold, at least
_AGAIN = 10.0  # seconds until a renewal is retried that the store couldn't do
_LONGEST = 300.0  # seconds of waiting at a time, in case the clock is set


def renewed_for(grace: float) -> float:
    """Return for how many seconds a hold is renewed."""
    return grace + max(grace * _STEP, _LEAST)


class Renewer:
    """Renews the holds of deliveries while they run.

    A hold is renewed when less than ``Offload.grace`` is left of it, so that a redelivery after
    a crash at any moment finds its values.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._running = PerProcess(lambda: _Running(self._renew_all))

    @contextmanager
    def running(self, delivery: Delivery) -> Iterator[None]:
        """Keep what *delivery* refers to within this block."""
        if delivery.until is None or not delivery.refers:
            yield
            return
        running = self._running.get()
        running.add(delivery, delivery.until - self._runtime.grace - self._now())
        try:
            yield
        finally:
            running.remove(delivery)

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
        return max(min(ends, default=now + grace + _LONGEST) - grace - now, 0.0)

    def _renew(self, delivery: Delivery) -> None:
        grace = self._runtime.grace
        ttl = renewed_for(grace)
        try:
            delivery.keep(ttl)
        except StoreUnavailable as exc:
            logger.warning("%r isn't renewed yet: %s", delivery.task.name, exc)
            delivery.until = self._now() + grace + _AGAIN
            return
        except OffloadError as exc:  # reading the reference says so where it matters
            logger.warning("%r runs, but a value is lost: %s", delivery.task.name, exc)
        delivery.until = self._now() + ttl

    def _now(self) -> float:
        return self._runtime.content.now()


class _Running:
    """The deliveries that run in this process, and the thread that renews them."""

    def __init__(self, renew: Callable[[_Running], float]) -> None:
        self._renew = renew
        self._deliveries: dict[int, Delivery] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._next = math.inf  # when something is due, by the monotonic clock
        self._sleeps_until = -math.inf

    def all(self) -> list[Delivery]:
        with self._changed:
            return list(self._deliveries.values())

    def add(self, delivery: Delivery, due: float) -> None:
        """Add what must be renewed in *due* seconds."""
        with self._changed:
            self._deliveries[id(delivery)] = delivery
            self._next = min(self._next, time.monotonic() + due)
            if self._thread is None:
                guard_forks()
                thread = threading.Thread(target=self._run, name="offload-renew", daemon=True)
                with suppress(RuntimeError):  # no more threads: the next task tries again
                    thread.start()
                    self._thread = thread
            elif self._next < self._sleeps_until:
                self._changed.notify()

    def remove(self, delivery: Delivery) -> None:
        with self._changed:
            self._deliveries.pop(id(delivery), None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._next = math.inf
            try:
                wait = self._renew(self)
            except Exception:
                logger.exception("holds of running tasks couldn't be renewed; retrying")
                wait = _AGAIN
            with self._changed:
                now = time.monotonic()
                self._next = min(self._next, now + wait)
                self._sleeps_until = min(self._next, now + _LONGEST)
                self._changed.wait(self._sleeps_until - now)
                self._sleeps_until = -math.inf
