"""Check the health of stores: availability, latency, capacity, last sweep."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from offload.digest import digest_of
from offload.doctor.server import Capacity
from offload.doctor.store import capacity_of
from offload.errors import BlobMissing, OffloadError
from offload.gc import LastSweep, last_sweep
from offload.stores.capabilities import BlobInspection, tiers_of
from offload.stores.protocols import Store

__all__ = ("PINGS", "StoreState", "TierState", "inspect_store")

PINGS = 5
"""Round trips whose median is the latency."""
_ENOUGH = 1.0  # seconds after which no more are made
_MISSING = digest_of([b"what no store has"])


@dataclass(frozen=True)
class TierState:
    """One store, a tier of several or the only one.

    Attributes:
        url: without credentials.
        min_size: bytes from which values go there; 0 for the first.
        error: why it is unavailable; "" if it isn't.
        latency: median of a few round trips, in seconds; None if unavailable.
        capacity: of each of its servers; empty if unknown.
        tracks_holds: whether it tracks holds, and deletes by itself what has none left.
    """

    url: str
    min_size: int
    error: str
    latency: float | None
    capacity: tuple[Capacity, ...]
    tracks_holds: bool


@dataclass(frozen=True)
class StoreState:
    """A store and its tiers.

    Attributes:
        at: when it was inspected, in seconds since 1970.
        last_sweep: None if there was none, or the first tier is unavailable.
    """

    at: float
    url: str
    tiers: tuple[TierState, ...]
    last_sweep: LastSweep | None

    @property
    def needs_sweeps(self) -> bool:
        """Whether expired blobs have to be swept: see `offload.gc`."""
        return not all(tier.tracks_holds for tier in self.tiers)


def inspect_store(store: Store, sizes: Sequence[int] = ()) -> StoreState:
    """Inspect *store* and each of its tiers, without changing anything.

    An unavailable tier takes one timeout (of Redis: ``socket_timeout``, 10 seconds), and is
    returned with its error.

    Args:
        sizes: ``offload_tier_sizes``.
    """
    began = time.time()
    tiers = tiers_of(store)
    states = tuple(
        _inspect(tier, min_size)
        for tier, min_size in zip(tiers, (0, *sizes, *[0] * len(tiers)), strict=False)
    )
    swept = None
    if not states[0].error:
        with suppress(OffloadError):  # it has no pointers, or became unavailable
            swept = last_sweep(store)
    return StoreState(began, store.url, states, swept)


def _inspect(store: Store, min_size: int) -> TierState:
    error, latency = "", None
    capacity: tuple[Capacity, ...] = ()
    try:
        latency = _latency(store)
        capacity = tuple(capacity_of(store))
    except OffloadError as exc:
        error = str(exc)
    except Exception as exc:  # a server may reply anything
        error = f"{type(exc).__name__}: {exc}"
    return TierState(store.url, min_size, error, latency, capacity, store.blobs.tracks_holds)


def _latency(store: Store) -> float:
    _ping(store)  # connects
    took: list[float] = []
    while len(took) < PINGS and sum(took) < _ENOUGH:
        began = time.perf_counter()
        _ping(store)
        took.append(time.perf_counter() - began)
    return median(took)


def _ping(store: Store) -> None:
    """Ask for a blob that doesn't exist."""
    if isinstance(store.blobs, BlobInspection):
        store.blobs.peek([_MISSING], 0)
        return
    with suppress(BlobMissing):
        list(store.blobs.get([_MISSING], 0))
