"""Holding a lease for as long as a piece of work takes."""

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

__all__ = ("Held", "held", "process_name")


@dataclass(frozen=True)
class Held:
    """A lease that this process holds.

    Attributes:
        fence: see `LeaseStore.acquire`.
        lost: set when it ran out all the same, or was taken by somebody else.
    """

    fence: int
    lost: threading.Event = field(default_factory=threading.Event)


def process_name() -> str:
    """Return how operators know this process: ``host:pid``."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}"


@contextmanager
def held(leases: LeaseStore, name: str, *, ttl: float) -> Iterator[Held | None]:
    """Hold the lease *name* while the block runs; gives None if somebody else has it.

    A thread renews it three times in *ttl* seconds, so a process that dies blocks others for
    no longer than that. What a store raises when it is first asked is raised here; that it
    does not answer later is borne until the lease has run out.
    """
    owner = f"{process_name()}:{os.urandom(8).hex()}"
    fence = leases.acquire(name, owner, ttl)
    if fence is None:
        yield None
        return
    lease = Held(fence)
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
