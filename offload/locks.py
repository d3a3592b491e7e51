"""Locks shared by processes and machines, on the leases of a store.

::

    with offload.lock("report:daily", ttl=60) as lock:
        write_report(fence=lock.fence)

A lock belongs to the `Lock` object that acquired it, and only in that process. While it is held, a
thread renews it three times per *ttl*, so it lasts as long as the work does, and expires within
*ttl* seconds if its process dies. A process that is stopped for longer than that loses the lock,
and may still write before it notices. Only the receiver can refuse that, by the *fence*, which is
greater for every new owner.
"""

from __future__ import annotations

import itertools
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType

from offload.errors import LockLost, LockNotOwned, StoreError
from offload.forks import start_thread
from offload.stores.capabilities import NotifiesRelease
from offload.stores.checks import check_name, check_timeout, check_ttl
from offload.stores.protocols import LeaseInfo, Store

_PREFIX = "lock/"
_FIRST_PAUSE, _LONGEST_PAUSE, _FACTOR = 0.1, 2.0, 1.5  # seconds between attempts to acquire


def process_name() -> str:
    """Return this process's name for operators: ``host:pid``."""
    return _process_name(os.getpid())


@lru_cache(1)
def _process_name(pid: int) -> str:
    return f"{socket.gethostname()[:100]}:{pid}"


@dataclass(frozen=True)
class Waited:
    """The outcome of `Lock.wait`; true if the lock is free.

    Attributes:
        released: whether the lock was free at the last check.
        checks: how often the store was asked.
    """

    released: bool
    checks: int

    def __bool__(self) -> bool:
        return self.released


@dataclass
class _Ownership:
    """A lease that this object acquired.

    Attributes:
        ttl: how long it lasts after a renewal.
        until: when it expires unless renewed, by this process's monotonic clock.
        wake: set to make the heartbeat read `ended` and `ttl` at once.
        renewing: held during a renewal, so that renewals are confirmed in the order stored.
    """

    owner: str
    fence: int
    ttl: float
    until: float
    pid: int = field(default_factory=os.getpid)
    lost: bool = False
    ended: bool = False
    released: bool = False
    wake: threading.Event = field(default_factory=threading.Event)
    renewing: threading.Lock = field(default_factory=threading.Lock)
    heartbeat: threading.Thread | None = None


class Lock:
    """A lock by name in a store.

    Not reentrant: an owner that acquires it again waits for itself. Several threads may share an
    object, as they share a `threading.Lock`. A forked child doesn't own its parent's locks.

    Args:
        store: any store with leases: memory, file, SQLite, Redis, S3, or tiers.
        name: 1 to 195 characters of ``A-Z a-z 0-9 . _ - : @ + = /``, with no empty, ``.``,
            or ``..`` segment.
        ttl: seconds after the last renewal until others may acquire the lock.
        heartbeat: whether a thread renews the lock every *ttl* / 3 seconds while it is held.
            Without it, call `extend` in time.

    Raises ValueError for an invalid name or a *ttl* that isn't positive.
    """

    def __init__(
        self, store: Store, name: str, *, ttl: float = 30.0, heartbeat: bool = True
    ) -> None:
        if isinstance(store, str):
            raise TypeError("a lock needs a store: pass open_store(url) instead of the URL")
        self.name = name
        self.ttl = check_ttl(ttl)
        self._url = store.url
        self._leases = store.leases
        self._lease = _lease_of(name)
        self._heartbeat = heartbeat
        self._held: _Ownership | None = None  # the last one, also after its release
        self._mine = threading.local()  # the last one of each thread
        self._clock: Callable[[], float] = time.monotonic
        self._sleep: Callable[[float], None] = time.sleep

    def __repr__(self) -> str:
        return f"<Lock {self.name!r} in {self._url}>"

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Acquire the lock, and return whether that succeeded.

        Args:
            blocking: wait while another owner has it.
            timeout: longest wait, in seconds; None, or -1 as in `threading.Lock`: no limit.

        Raises:
            ValueError: a *timeout* that isn't a number, or is for a call that doesn't block.
            ConfigurationError: the store has no leases, or ignores conditional writes.
            StoreUnavailable, StoreError: the store failed.
        """
        if timeout == -1:
            timeout = None
        if timeout is not None and not blocking:
            raise ValueError("a timeout needs blocking=True")
        owner = f"{process_name()}:{os.urandom(8).hex()}"
        limit = timeout if blocking else 0.0
        attempts = self._attempts(limit, _FIRST_PAUSE, _LONGEST_PAUSE, _FACTOR)
        return any(self._try(owner) for _ in attempts)

    def release(self) -> None:
        """Release the lock. Releasing it a second time does nothing.

        Raises:
            LockLost: it expired, or another owner has taken it.
            LockNotOwned: this object didn't acquire it, or its parent process did.
            StoreUnavailable, StoreError: the store failed, and the lock hasn't expired: it does
                after its ttl, unless another call releases it.
        """
        held = self._current()
        if held is not None and held.released:
            return
        held = self._ownership()
        self._stop(held)
        try:
            if not self._leases.release(self._lease, held.owner):
                held.lost = True
        except StoreError as exc:
            if not self._has_expired(held):
                raise
            held.lost = held.released = True
            raise self._lost_error() from exc
        held.released = True  # another thread may have acquired the lock through this object
        if held.lost:
            raise self._lost_error()

    def extend(self, ttl: float | None = None) -> None:
        """Renew the lock now, for *ttl* seconds.

        Args:
            ttl: replaces the lock's own ttl, until the lock is released.

        Raises LockLost, LockNotOwned, StoreUnavailable, or StoreError as `release` does.
        """
        held = self._ownership()
        try:
            renewed = not held.lost and self._renew(held, None if ttl is None else check_ttl(ttl))
        except StoreError as exc:
            if not self._has_expired(held):
                raise
            held.lost = True
            raise self._lost_error() from exc
        finally:
            held.wake.set()
        if not renewed:
            held.lost = True
            raise self._lost_error()

    def locked(self) -> bool:
        """Return whether the lock is held now."""
        return self._leases.read(self._lease) is not None

    def owned(self) -> bool:
        """Return whether this object has the lock now, according to the store."""
        held = self._current()
        if held is None or held.pid != os.getpid() or held.lost or held.released:
            return False
        lease = self._leases.read(self._lease)
        return lease is not None and lease.owner == held.owner

    @property
    def fence(self) -> int:
        """The fencing number of this ownership: greater than that of every earlier owner.

        Store it with what the lock protects, and refuse writes with a smaller one.

        Raises LockLost, LockNotOwned.
        """
        held = self._ownership()
        if self.lost:
            raise self._lost_error()
        return held.fence

    @property
    def lost(self) -> bool:
        """Whether this object had the lock and lost it, as far as this process knows."""
        held = self._current()
        if held is None or held.released:
            return False
        return self._has_expired(held)

    def wait(
        self,
        timeout: float | None = None,
        initial: float = 0.5,
        maximum: float = 10.0,
        factor: float = 1.5,
    ) -> Waited:
        """Wait until the lock is free, without acquiring it.

        In Redis, a release ends the wait at once. Other stores are polled with exponential
        backoff.

        Args:
            timeout: longest wait, in seconds; None: no limit.
            initial: seconds before the second check.
            maximum: longest pause between two checks, in seconds.
            factor: how much longer each pause is than the one before, at least 1.

        Raises StoreUnavailable or StoreError, and ValueError if an argument is out of range.
        """
        if not (isinstance(factor, (int, float)) and factor >= 1):  # NaN included
            raise ValueError(f"factor is a number of at least 1, not {factor!r}")
        checks = 0
        for checks in self._attempts(timeout, check_ttl(initial), check_ttl(maximum), factor):
            if not self.locked():
                if checks > 1 and isinstance(self._leases, NotifiesRelease):
                    self._leases.notify(self._lease)  # a release wakes only one waiter
                return Waited(released=True, checks=checks)
        return Waited(released=False, checks=checks)

    def __enter__(self) -> Lock:  # noqa: PYI034 (Self needs Python 3.11)
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.release()
            return
        with suppress(StoreError):  # must not hide the block's own error
            self.release()

    def _try(self, owner: str) -> bool:
        asked, held = self._clock(), None
        try:
            fence = self._leases.acquire(self._lease, owner, self.ttl)
            if fence is None:
                return False
            held = _Ownership(owner, fence, self.ttl, asked + self.ttl)
            if self._heartbeat:
                held.heartbeat = start_thread(self._beat, f"offload-lock {self.name}", held)
            self._held = self._mine.held = held
            return True
        except BaseException:  # also a time limit
            if held is not None:
                held.ended = held.released = True  # not joined: it may not have started
                held.wake.set()
            with suppress(Exception):  # the store may have granted it
                self._leases.release(self._lease, owner)
            raise

    def _current(self) -> _Ownership | None:
        """Return this thread's acquisition if it is held or lost, or else any thread's latest.

        If it was lost, another thread may have acquired the lock through this object since.
        """
        mine: _Ownership | None = getattr(self._mine, "held", None)
        if mine is None or (mine.released and not mine.lost):
            return self._held
        return mine

    def _ownership(self) -> _Ownership:
        held = self._current()
        if held is None or held.released or held.pid != os.getpid():
            raise LockNotOwned(
                f"lock {self.name!r} in {self._url} isn't owned by this object: acquire it first, "
                "in the process that uses it",
                store=self._url,
            )
        return held

    def _has_expired(self, held: _Ownership) -> bool:
        return held.lost or self._clock() > held.until

    def _renew(self, held: _Ownership, ttl: float | None = None) -> bool:
        with held.renewing:
            asked, ttl = self._clock(), ttl or held.ttl
            # If no answer comes, either may be in force:
            held.ttl, held.until = min(held.ttl, ttl), min(held.until, asked + ttl)
            if not self._leases.renew(self._lease, held.owner, ttl):
                return False
            held.ttl, held.until = ttl, asked + ttl
            return True

    def _beat(self, held: _Ownership) -> None:
        while True:
            held.wake.wait(held.ttl / 3)
            if held.ended:
                return
            if held.wake.is_set():  # it was extended
                held.wake.clear()
                continue
            try:
                held.lost = not self._renew(held)
            except Exception:  # tolerated until the lease expires, whatever it is
                held.lost = self._clock() > held.until
            if held.lost:
                return

    def _stop(self, held: _Ownership) -> None:
        held.ended = True
        held.wake.set()
        if held.heartbeat is not None:
            held.heartbeat.join()

    def _attempts(
        self, timeout: float | None, pause: float, longest: float, factor: float
    ) -> Iterator[int]:
        """Yield the number of each attempt, from 1, and pause between them, for *timeout* seconds.

        Each pause is *factor* times as long as the one before, up to *longest* seconds.
        """
        timeout = check_timeout(timeout)
        end = math.inf if timeout is None else self._clock() + timeout
        for number in itertools.count(1):
            yield number
            left = end - self._clock()
            if left <= 0:
                return
            self._pause(min(pause, left))
            pause = min(pause * factor, longest)

    def _pause(self, seconds: float) -> None:
        if isinstance(self._leases, NotifiesRelease):
            self._leases.wait_for_release(self._lease, seconds)
        else:
            self._sleep(seconds)

    def _lost_error(self) -> LockLost:
        return LockLost(
            f"lock {self.name!r} in {self._url} was lost: it wasn't renewed within its ttl, and "
            "another owner may have it; undo or repeat the work under a new lock",
            store=self._url,
        )


def _lease_of(name: str) -> str:
    if not isinstance(name, str):
        raise ValueError(f"not a name: a lock's name must be text, not {type(name).__name__}")
    try:
        return check_name(_PREFIX + name)
    except ValueError:  # which names the lease
        raise ValueError(
            f"not a name: {name[:250]!r}; a lock's name is 1 to 195 characters of "
            "A-Z a-z 0-9 . _ - : @ + = /, with no empty, '.' or '..' segment"
        ) from None


def list_locks(store: Store, prefix: str = "") -> Iterator[tuple[str, LeaseInfo]]:
    """Yield the name of each lock in *store* that has an owner, with owner, fence, and ttl.

    Raises ConfigurationError, StoreUnavailable, or StoreError.
    """
    for lease in store.leases.names(_PREFIX + prefix):
        info = store.leases.read(lease)
        if info is not None:
            yield lease[len(_PREFIX) :], info


def break_lock(store: Store, name: str) -> LeaseInfo | None:
    """Release the lock *name*, no matter who owns it; return its lease, or None if it was free.

    The next owner's fence is greater, and the present owner notices that it has lost the lock.
    """
    lease = _lease_of(name)
    info = store.leases.read(lease)
    if info is None or not store.leases.release(lease, info.owner):
        return None
    return info
