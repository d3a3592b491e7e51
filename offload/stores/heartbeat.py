"""Keep a lease while a block of code runs."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from offload.errors import StoreError
from offload.stores.protocols import LeaseStore

__all__ = ("HeldLease", "hold_lease", "process_name")


@dataclass(frozen=True)
class HeldLease:
    """A lease of this process.

    Attributes:
        fence: see `LeaseStore.acquire`.
        lost: set once it expired or another owner took it.
    """

    fence: int
    lost: threading.Event = field(default_factory=threading.Event)


def process_name() -> str:
    """Return this process's name for operators: ``host:pid``."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}"


@contextmanager
def hold_lease(leases: LeaseStore, name: str, *, ttl: float) -> Iterator[HeldLease | None]:
    """Keep the lease *name* while the block runs; yields None if another owner has it.

    A thread renews it three times per *ttl* seconds, so a process that dies blocks others for
    no longer than that. The first call's StoreError is raised; a store that is unavailable
    later is tolerated until the lease expires.
    """
    owner = f"{process_name()}:{os.urandom(8).hex()}"
    fence = leases.acquire(name, owner, ttl)
    if fence is None:
        yield None
        return
    lease = HeldLease(fence)
    ended = threading.Event()

    def beat() -> None:
        renewed = time.monotonic()
        while not ended.wait(ttl / 3):
            asked = time.monotonic()
            try:
                if not leases.renew(name, owner, ttl):
                    break
                renewed = asked
            except StoreError:
                if time.monotonic() - renewed > ttl:
                    break
        else:
            return
        lease.lost.set()

    thread = threading.Thread(target=beat, name="offload-lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        with suppress(StoreError):
            leases.release(name, owner)
