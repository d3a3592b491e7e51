"""How the stores are: whether they answer, how fast, how full they are, when they were swept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from offload.digest import digest_of
from offload.doctor.kinds import capacity_of
from offload.doctor.server import Capacity
from offload.errors import BlobMissing, OffloadError
from offload.gc import LastSweep, last_sweep
from offload.stores.capabilities import BlobInspection, tiers_of
from offload.stores.protocols import Store

__all__ = ("PINGS", "StoreState", "TierState", "look_at_stores")

PINGS = 5
"""Round trips that the latency is the median of."""
_ENOUGH = 1.0  # seconds of them
_NOTHING = digest_of([b"what no store has"])


@dataclass(frozen=True)
class TierState:
    """One store, a tier of several or the only one.

    Attributes:
        url: without credentials.
        begins: bytes of a value from which it goes there; 0 for the first.
        error: why it does not answer; "" if it does.
        latency: seconds of a round trip, the median of some; None where it does not answer.
        capacity: of each of its servers; empty where it does not say.
        tracks_holds: whether what nobody needs any more goes by itself.
    """

    url: str
    begins: int
    error: str
    latency: float | None
    capacity: tuple[Capacity, ...]
    tracks_holds: bool


@dataclass(frozen=True)
class StoreState:
    """A store and its tiers.

    Attributes:
        at: when it was looked at, in seconds since 1970.
        last_sweep: None where nobody noted one, or the first tier does not answer.
    """

    at: float
    url: str
    tiers: tuple[TierState, ...]
    last_sweep: LastSweep | None

    @property
    def needs_sweeps(self) -> bool:
        """Whether somebody has to remove what has ended: see `offload.gc`."""
        return not all(tier.tracks_holds for tier in self.tiers)


def look_at_stores(store: Store, sizes: Sequence[int] = ()) -> StoreState:
    """Look at *store* and each of its tiers, and change nothing.

    A tier that does not answer is waited for once, for as long as its own timeouts say (for Redis
    ``socket_timeout``, 10 seconds), and told with its error.

    Args:
        sizes: ``offload_tier_sizes``.
    """
    began = time.time()
    tiers = tiers_of(store)
    states = tuple(
        _look(tier, begins)
        for tier, begins in zip(tiers, (0, *sizes, *[0] * len(tiers)), strict=False)
    )
    swept = None
    if not states[0].error:
        with suppress(OffloadError):  # it has no pointers, or went away just now
            swept = last_sweep(store)
    return StoreState(began, store.url, states, swept)


def _look(store: Store, begins: int) -> TierState:
    error, latency = "", None
    capacity: tuple[Capacity, ...] = ()
    try:
        latency = _latency(store)
        capacity = tuple(capacity_of(store))
    except OffloadError as exc:
        error = str(exc)
    except Exception as exc:  # of a server's that says odd things
        error = f"{type(exc).__name__}: {exc}"
    return TierState(store.url, begins, error, latency, capacity, store.blobs.tracks_holds)


def _latency(store: Store) -> float:
    _ask(store)  # connects
    took: list[float] = []
    while len(took) < PINGS and sum(took) < _ENOUGH:
        began = time.perf_counter()
        _ask(store)
        took.append(time.perf_counter() - began)
    return median(took)


def _ask(store: Store) -> None:
    """Ask for a blob that is not there."""
    if isinstance(store.blobs, BlobInspection):
        store.blobs.peek([_NOTHING], 0)
        return
    with suppress(BlobMissing):
        list(store.blobs.get([_NOTHING], 0))
