"""Check and measure a store: test writes, its last sweep, and its server's configuration."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from offload.digest import digest_of
from offload.doctor.retention import lifecycle_rule
from offload.doctor.servers import (
    Capacity,
    check_space,
    diagnose_files,
    diagnose_fsspec,
    diagnose_redis,
    folder_capacity,
    redis_capacity,
)
from offload.errors import BlobMissing, ConfigurationError, OffloadError
from offload.gc import LastSweep, last_sweep
from offload.inspect import Finding
from offload.stores.capabilities import BlobInspection, tiers_of
from offload.stores.file.store import FileStore
from offload.stores.fsspec.store import FsspecStore
from offload.stores.memory import MemoryStore
from offload.stores.protocols import Store
from offload.stores.redis.store import RedisStore
from offload.stores.sqlite.store import SQLiteStore

_TTL = 60.0  # seconds until leftovers of a killed check expire
_SELDOM = 2 * 86400.0  # seconds; longer without a sweep is worth a warning
_SCHEDULE = (
    'run the task "offload.gc" every hour with beat, or `celery -A … offload gc` with cron; for '
    "S3 without a catalog, a lifecycle rule also works, some days later"
)


def blobs(store: Store) -> Iterator[Finding]:
    """Check that a blob can be written, read, and deleted."""
    content = b"offload doctor " + os.urandom(32)
    digest = digest_of([content])
    began = time.monotonic()
    try:
        store.blobs.put({digest: [content]}, _TTL)
        (found,) = store.blobs.get([digest], len(content))
        if bytes(found) != content:
            yield Finding("error", "a blob was read back with different bytes")
            return
        store.blobs.delete([digest])
    finally:
        with suppress(OffloadError):
            store.blobs.delete([digest])
    took = (time.monotonic() - began) * 1000
    try:
        list(store.blobs.get([digest], len(content)))
    except BlobMissing:
        yield Finding("ok", f"a blob was written, read, and deleted ({took:.1f} ms)")
    else:
        yield Finding("error", "a deleted blob can still be read")


def pointers(store: Store) -> Iterator[Finding]:
    """Check that pointers are changed by compare-and-swap."""
    name = f"doctor/{os.urandom(8).hex()}"
    swap = store.pointers.swap
    try:
        wanted = (
            swap(name, None, b"one"),
            not swap(name, None, b"two"),
            not swap(name, b"three", b"two"),
            store.pointers.read(name) == b"one",
        )
    finally:
        with suppress(OffloadError):
            swap(name, b"one", None)
    if all(wanted):
        yield Finding("ok", "pointers are changed by compare-and-swap")
    else:
        yield Finding(
            "error",
            "compare-and-swap overwrote a pointer that had changed: processes could sign "
            "references with different keys",
            "use a store that passes the conformance suite; see offload.testing",
        )


def leases(store: Store) -> Iterator[Finding]:
    """Check that a lease has only one owner."""
    name = f"doctor/{os.urandom(8).hex()}"
    first = store.leases.acquire(name, "one", _TTL)
    try:
        kept = first is not None and store.leases.acquire(name, "two", _TTL) is None
    finally:
        with suppress(OffloadError):
            store.leases.release(name, "one")
    if kept:
        yield Finding("ok", "a lease has only one owner")
    else:
        yield Finding("error", "two owners got the same lease")


def sweeping(store: Store) -> Iterator[Finding]:
    """Check that expired blobs are swept, unless the server deletes them by itself."""
    places = ", ".join(tier.url for tier in tiers_of(store) if not tier.blobs.tracks_holds)
    if not places:
        return
    try:
        last = last_sweep(store)
    except ConfigurationError:  # `pointers` reports that the store has none
        return
    if last is None or last.ended is None:
        yield Finding("warning", f"{places} was never swept", _SCHEDULE)
        return
    hours = (time.time() - last.ended) / 3600
    shown = f"{places} was last swept {hours:.1f} hours ago by {last.by}"
    if hours * 3600 > _SELDOM:
        yield Finding("warning", shown, _SCHEDULE)
    else:
        yield Finding("ok", shown)


def diagnose(store: Store, *, longest: float) -> Iterator[Finding]:
    """Check the server, bucket, or folder of *store* and its configuration, changing nothing.

    Yields nothing for kinds of stores that it doesn't know.

    Args:
        longest: the longest time that the app may keep a value, in seconds; may be infinite.

    Raises StoreError if the server refuses, StoreUnavailable if it is unavailable.
    """
    if isinstance(store, RedisStore):
        yield from diagnose_redis(store.client)
    elif isinstance(store, FileStore):
        yield from diagnose_files(store.disk)
    elif isinstance(store, SQLiteStore):
        yield from check_space(store.database.path)
    elif isinstance(store, FsspecStore):
        yield from diagnose_fsspec(store)
    elif type(store) is MemoryStore:
        yield Finding(
            "warning",
            "it is in this process's memory: workers can't read what a publisher stores",
            "set offload_store to Redis, S3, or a shared folder; memory stores are for tests",
        )
    elif store.url.startswith("s3://"):
        from offload.doctor import s3  # needs boto3
        from offload.stores.s3.store import S3Store

        if isinstance(store, S3Store):
            rule = lifecycle_rule(store, longest) if math.isfinite(longest) else None
            yield from s3.diagnose(store.client, store.conditions, rule)


def capacity_of(store: Store) -> Iterator[Capacity]:
    """Yield the capacity of each server of *store*; nothing if it is unknown.

    Takes one round trip per server.
    """
    if isinstance(store, RedisStore):
        yield from redis_capacity(store.client)
    elif isinstance(store, FileStore):
        with store.disk.errors():
            yield from folder_capacity(store.disk.root)
    elif isinstance(store, SQLiteStore):
        yield from folder_capacity(store.database.path)


PINGS = 5
"""Number of round trips; the latency is their median."""
_ENOUGH = 1.0  # seconds after which no more round trips are started
_MISSING = digest_of([b"what no store has"])


@dataclass(frozen=True)
class TierState:
    """One tier of a store; a store without tiers is its only one.

    Attributes:
        url: its URL, without credentials.
        min_size: minimum serialized bytes of values that go there; 0 for the first tier.
        error: why it is unavailable; "" if it is available.
        latency: median of a few round trips, in seconds; None if unavailable.
        capacity: the capacity of each server; empty if unknown.
        tracks_holds: whether it tracks holds, and deletes blobs without holds by itself.
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
        url: its URL, without credentials.
        last_sweep: None if it was never swept, or if the first tier is unavailable.
    """

    at: float
    url: str
    tiers: tuple[TierState, ...]
    last_sweep: LastSweep | None

    @property
    def needs_sweeps(self) -> bool:
        """Whether expired blobs must be swept: see `offload.gc`."""
        return not all(tier.tracks_holds for tier in self.tiers)


def inspect_store(store: Store, sizes: Sequence[int] = ()) -> StoreState:
    """Inspect *store* and each of its tiers, without changing anything.

    An unavailable tier takes one timeout (``socket_timeout`` of Redis: 10 seconds), and is
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
        with suppress(OffloadError):  # no pointers, or just became unavailable
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
    except Exception as exc:  # a broken server can cause any error
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
    """Make one round trip, by requesting a blob that doesn't exist."""
    if isinstance(store.blobs, BlobInspection):
        store.blobs.peek([_MISSING], 0)
        return
    with suppress(BlobMissing):
        list(store.blobs.get([_MISSING], 0))
