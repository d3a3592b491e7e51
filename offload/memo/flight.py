"""Single flight: if equal calls run at the same time, only one of them computes.

A computation owns the lease of its record. One thread per process renews the leases of computations
that run longer than a third of their lease; shorter ones cost only bookkeeping. A result is written
by compare-and-swap, and only while its computation has the lease: a process that was stopped for
too long doesn't replace what others have computed meanwhile.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from offload.errors import StoreError
from offload.forks import start_thread
from offload.locks import process_name
from offload.stores.capabilities import Claim, ClaimsPointers, NotifiesRelease
from offload.stores.processes import PerProcess
from offload.stores.protocols import Store

__all__ = ("BRIEF", "Busy", "Computation", "Flights")

logger = logging.getLogger(__name__)

BRIEF = 0.05
"""Seconds that a brief computation takes at most. Its settlement may wait as long for a request
that carries it."""

_ATTEMPTS = 10  # to write a record that others change at the same time: forget, sweep
_IDLE = 3600.0  # seconds that the thread waits while nothing is computed
_FIRST_PAUSE, _LONGEST_PAUSE, _FACTOR = 0.05, 1.0, 1.5  # seconds between attempts in `wait`

_numbers = itertools.count()


@lru_cache(1)
def _owners(pid: int) -> str:  # noqa: ARG001 (a forked child has names of its own)
    """Return the start of the names of all owners in this process."""
    return f"{process_name()}:{os.urandom(8).hex()}:"


@dataclass(frozen=True)
class Busy:
    """Another caller is computing.

    Attributes:
        left: seconds until its lease expires, unless it is renewed.
    """

    left: float


@dataclass(eq=False)
class Computation:
    """A call that this process computes.

    Attributes:
        name: the name of its record and lease.
        fence: fencing number of the lease, greater than that of every earlier computation.
        expected: what the record's pointer holds; None if it is unset.
        lease: seconds that the lease lasts after a renewal.
        due: when to renew the lease, by the monotonic clock.
        ended: whether its lease was released or lost.
    """

    name: str
    owner: str
    fence: int
    expected: bytes | None
    lease: float
    due: float = field(default=math.inf)
    ended: bool = False


class Flights:
    """Takes and renews the leases of computations, and writes their records.

    Args:
        is_valid: whether a record's pointer holds a valid record; invalid ones are computed again.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        is_valid: Callable[[str, bytes], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = store.leases
        self._pointers = store.pointers
        self._is_valid = is_valid
        self._clock = clock
        self._running = PerProcess(lambda: _Heartbeat(self.renew_due, clock), keep_inherited=True)

    @cached_property
    def _at_once(self) -> ClaimsPointers | None:
        """The leases, if one request can read a record and take its lease."""
        leases = self._leases
        return leases if isinstance(leases, ClaimsPointers) and leases.can_claim else None

    def claim(
        self, name: str, lease: float, useless: bytes | None = None
    ) -> bytes | Computation | Busy:
        """Return the record *name*, or acquire its computation for *lease* seconds.

        Args:
            useless: a record to ignore, because its result can't be read.

        Raises StoreError (also ConfigurationError, for a store without leases).
        """
        return self.start(name, lease, useless)()

    def start(
        self, name: str, lease: float, useless: bytes | None = None
    ) -> Callable[[], bytes | Computation | Busy]:
        """Return a function, to be called once, that does what `claim` does.

        On Redis, this sends the request, so that the caller can do something else meanwhile. This
        call and the returned function raise StoreError.
        """
        owner = f"{_owners(os.getpid())}{next(_numbers)}"
        asked = self._clock()
        at_once = self._at_once
        sent = None
        try:
            if at_once is not None:
                sent = at_once.claim(name, owner, lease)
        except BaseException:  # also a time limit: the store may have granted the lease
            self._give_up(name, owner)
            raise

        def finish() -> bytes | Computation | Busy:
            try:
                found = self._claimed(name, owner, lease, useless, sent)
                if type(found) is Computation:
                    found.due = asked + lease / 3
                    self._running.get().add(found)
            except BaseException:
                self._give_up(name, owner)
                raise
            return found

        return finish

    def _give_up(self, name: str, owner: str) -> None:
        with suppress(Exception):
            self._leases.release(name, owner)

    def _claimed(
        self,
        name: str,
        owner: str,
        lease: float,
        useless: bytes | None,
        sent: Callable[[], Claim] | None,
    ) -> bytes | Computation | Busy:
        leases, pointers = self._leases, self._pointers
        if sent is not None:
            claim = sent()
            if claim.fence is not None:
                return Computation(name, owner, claim.fence, None, lease)
            value = claim.value
            if value is None:
                return Busy(claim.left)
        else:
            value = pointers.read(name)
        if value is not None and value != useless and self._is_valid(name, value):
            return value
        fence = leases.acquire(name, owner, lease)
        if fence is None:
            info = leases.read(name)
            return Busy(info.ttl if info is not None else 0.0)
        now = pointers.read(name)  # another process may have written it before we had the lease
        if now is not None and now not in (value, useless) and self._is_valid(name, now):
            leases.release(name, owner)
            return now
        return Computation(name, owner, fence, now, lease)

    def settle(self, computation: Computation, value: bytes, ttl: float) -> Callable[[], bool]:
        """Write the record, to be kept for *ttl* seconds, and release the lease.

        On Redis, this only sends the request, so that the caller can do something else meanwhile.
        Returns a function, to be called once, that waits until it is done. It returns False if the
        computation has lost its lease: another process may be computing by now, or an operator
        forgot the result. This call and the returned function raise StoreError.
        """
        first = self._send(computation, value, ttl)

        def finish() -> bool:
            done = first()
            for _ in range(_ATTEMPTS):
                if done is not None:
                    self._end(computation)
                    return bool(done)
                computation.expected = self._pointers.read(computation.name)
                done = self._send(computation, value, ttl)()
            return False

        return finish

    def settle_later(
        self,
        computation: Computation,
        value: bytes,
        ttl: float,
        answered: Callable[[object], None],
    ) -> bool:
        """End a computation, and do what `settle` does with the next request to the store.

        Returns False if that isn't possible; then nothing has changed. Otherwise, the caller must
        see to it that there soon is a request: others wait until then.

        Args:
            answered: called with 1 when it is done; with anything else if it can't be.
        """
        at_once = self._at_once
        if at_once is None or computation.expected is not None:
            return False
        name, owner = computation.name, computation.owner
        if not at_once.settle_later(name, owner, value, ttl, answered):
            return False
        self._end(computation)
        return True

    def _send(self, computation: Computation, value: bytes, ttl: float) -> Callable[[], int | None]:
        name, owner, expected = computation.name, computation.owner, computation.expected
        if self._at_once is not None:
            return self._at_once.settle(name, owner, expected, value, ttl)
        done = self._settle(computation, value)
        return lambda: done

    def _end(self, computation: Computation) -> None:
        computation.ended = True
        self._running.get().remove(computation)

    def _settle(self, computation: Computation, value: bytes) -> bool | None:
        leases, pointers = self._leases, self._pointers
        name, owner = computation.name, computation.owner
        if not leases.renew(name, owner, computation.lease):
            return False
        if not pointers.swap(name, computation.expected, value):
            return None
        if leases.release(name, owner):
            return True
        pointers.swap(name, value, None)  # forgotten in between, or we were stopped
        return False

    def abandon(self, computation: Computation) -> None:
        """Release the lease without a record, unless it was settled. If that fails, it expires."""
        if computation.ended:
            return
        self._end(computation)
        with suppress(StoreError):
            self._leases.release(computation.name, computation.owner)

    @staticmethod
    def pause(busy: Busy, attempt: int) -> float:
        """Return the seconds to wait before claim number *attempt* (from 0), if nothing signals the
        end of the computation.
        """
        pause = min(_FIRST_PAUSE * _FACTOR ** min(attempt, 20), _LONGEST_PAUSE)
        return min(pause, max(busy.left, _FIRST_PAUSE))

    def wait(self, name: str, busy: Busy, attempt: int) -> None:
        """Wait in place before claim number *attempt* (from 0).

        On Redis, the end of the computation ends the wait at once.
        """
        leases = self._leases
        if isinstance(leases, NotifiesRelease):
            leases.wait_for_release(name, max(min(busy.left, _LONGEST_PAUSE), _FIRST_PAUSE))
        else:
            time.sleep(self.pause(busy, attempt))

    def wait_briefly(self, name: str, busy: Busy, lease: float) -> bool:
        """Wait in place for a computation that began just now, as it may be over in a moment.

        Returns False if it has taken longer, or if its end wouldn't end the wait.

        Args:
            lease: seconds that its lease lasts.
        """
        leases, began = self._leases, lease - busy.left
        if not (isinstance(leases, NotifiesRelease) and 0 <= began < BRIEF * 2):
            return False
        leases.wait_for_release(name, BRIEF * 2)
        return True

    def wake(self, name: str) -> None:
        """Wake the next waiter: the end of a computation wakes only one."""
        if isinstance(self._leases, NotifiesRelease):
            with suppress(StoreError):
                self._leases.notify(name)

    def renew_due(self, running: list[Computation]) -> None:
        """Renew the leases of *running* that are due. Never raises."""
        for computation in running:
            asked = self._clock()
            if computation.due > asked:
                continue
            computation.due = asked + computation.lease / 3
            try:
                self._leases.renew(computation.name, computation.owner, computation.lease)
            except Exception as exc:  # tolerated: `settle` finds out whether the lease is lost
                logger.info("a computation's lease isn't renewed yet: %s", exc)


class _Heartbeat:
    """The computations of this process, and the thread that renews their leases.

    A computation without references isn't renewed: a time limit may have interrupted its owner
    before it could end the computation, and others would wait forever.
    """

    def __init__(
        self, renew: Callable[[list[Computation]], None], clock: Callable[[], float]
    ) -> None:
        self._renew = renew
        self._clock = clock
        self._computations: dict[int, weakref.ref[Computation]] = {}
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._wakes = math.inf  # when the thread looks again, at the latest

    def add(self, computation: Computation) -> None:
        with self._changed:
            self._computations[id(computation)] = weakref.ref(computation)
            if self._thread is None:
                with suppress(RuntimeError):  # no more threads: the next computation tries again
                    self._thread = start_thread(self._run, "offload-memo")
            elif computation.due < self._wakes:
                self._changed.notify()

    def remove(self, computation: Computation) -> None:
        with self._changed:
            self._computations.pop(id(computation), None)

    def _live(self) -> list[Computation]:
        found = {key: each() for key, each in self._computations.items()}
        for key, each in found.items():
            if each is None:
                del self._computations[key]
        return [each for each in found.values() if each is not None]

    def _run(self) -> None:
        while True:
            with self._changed:
                now = self._clock()
                running = self._live()
                due = min((each.due for each in running), default=math.inf)
                if due > now:
                    del running  # while this thread waits
                    self._wakes = min(due, now + _IDLE)
                    self._changed.wait(self._wakes - now)
                    self._wakes = -math.inf
                    running = self._live()
            self._renew(running)
            del running  # while this thread waits
