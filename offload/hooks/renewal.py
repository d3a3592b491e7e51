"""Extend holds that would expire too early: those of running tasks, and of a chord's parts.

A message's hold lasts as long as the message may wait. A task that runs longer may still read a
reference, or publish the callbacks that its message carries. One thread in each process that runs
tasks waits for the earliest hold that would otherwise expire; tasks that end before cost nothing
but the bookkeeping.

Celery's Redis backend collects a chord's parts under one key, whose expiry each returning part
extends. The values that the parts refer to follow it. They are held for a quarter longer than
Celery's key, so a part needs to extend the others only if its process hasn't done so for that long;
parts that return within a quarter of the expiry after the chord began cost nothing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from offload.content.holds import Hold, holder
from offload.errors import OffloadError, StoreUnavailable
from offload.forks import guard_forks
from offload.hooks.celery_internals import collected_parts, collects_parts
from offload.hooks.delivery import Delivery
from offload.hooks.message import body_of, task_holder
from offload.hooks.runtime import Runtime
from offload.ref import Ref, has_wire_form, wire_text
from offload.stores.processes import PerProcess

__all__ = ("PartKeeper", "Renewer", "part_ttl", "renewed_for")

logger = logging.getLogger(__name__)

_STEP = 0.5
"""Share of the grace by which a renewed hold outlasts the time that a redelivery needs."""
_STEP_AT_LEAST = 30.0  # seconds between two renewals of one hold
_RETRY = 10.0  # seconds until a renewal is retried after a store error
_LONGEST_WAIT = 300.0  # seconds of waiting at a time, in case the clock is changed
_PART_SHARE = 0.25
_CHORDS_REMEMBERED = 1000


# -- running tasks


def renewed_for(grace: float) -> float:
    """Return for how many seconds a hold is renewed."""
    return grace + max(grace * _STEP, _STEP_AT_LEAST)


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
        """Keep the values that *delivery* refers to during this block."""
        if delivery.until is None or not delivery.has_refs:
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
        return max(min(ends, default=now + grace + _LONGEST_WAIT) - grace - now, 0.0)

    def _renew(self, delivery: Delivery) -> None:
        grace = self._runtime.grace
        ttl = renewed_for(grace)
        try:
            delivery.keep(ttl)
        except StoreUnavailable as exc:
            logger.warning("%r isn't renewed yet: %s", delivery.task.name, exc)
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
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._next = math.inf  # when the next hold is due, by the monotonic clock
        self._sleeps_until = -math.inf

    def all(self) -> list[Delivery]:
        with self._changed:
            return list(self._deliveries.values())

    def add(self, delivery: Delivery, due: float) -> None:
        """Add a delivery whose holds are due in *due* seconds."""
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
                wait = _RETRY
            with self._changed:
                now = time.monotonic()
                self._next = min(self._next, now + wait)
                self._sleeps_until = min(self._next, now + _LONGEST_WAIT)
                self._changed.wait(self._sleeps_until - now)
                self._sleeps_until = -math.inf


# -- parts of chords


def part_ttl(backend: Any) -> float:
    """Return for how many seconds the result of a chord's part is held; 0 if the backend doesn't
    collect parts, or never forgets them.
    """
    return _parts_expire(backend) * (1 + _PART_SHARE)


def _parts_expire(backend: Any) -> float:
    if not collects_parts(backend):
        return 0.0
    return float(getattr(backend, "chord_expires", backend.expires) or 0.0)


class PartKeeper:
    """Extends the holds on results of earlier parts of long chords."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._extended: OrderedDict[str, float] = OrderedDict()

    def part_returns(self, backend: Any, request: Any, delivery: Delivery) -> None:
        """Record that a part returns; extend the others if that is due. Never raises."""
        expires, now = _parts_expire(backend), self._runtime.clock()
        step = expires * _PART_SHARE
        if not expires or delivery.since is None or now - delivery.since < step:
            return
        delivery.parts_are_held = True
        if now - self._extended.get(request.group, 0.0) < step:
            return
        try:
            self._extend(backend, request)
        except Exception as exc:
            logger.warning("the values of a chord's parts aren't extended: %r", exc)
            return
        self._extended[request.group] = now
        while len(self._extended) > _CHORDS_REMEMBERED:
            self._extended.popitem(last=False)

    def _extend(self, backend: Any, request: Any) -> None:
        content = self._runtime.content
        texts = (wire_text(result) for result in collected_parts(backend, request.group))
        refs = [Ref.unbound(text) for text in texts if text is not None and has_wire_form(text)]
        body = body_of(request)
        name = task_holder(body) if body else holder("result", request.group)
        content.holds.add(map(content.opened, refs), Hold(part_ttl(backend), name))
