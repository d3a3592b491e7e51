"""The stores page: availability, capacity, and traffic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.rendering import Column, Table, render
from offload.dashboard.state import state_of
from offload.dashboard.statistics import TIME_RANGES
from offload.doctor.servers import Capacity
from offload.doctor.store import StoreState, TierState
from offload.errors import OffloadError
from offload.metrics.report import Figures, by_store
from offload.text import UNKNOWN, human_latency, human_number, human_size

_PATIENCE = 3.0  # seconds that the first request waits for data


@dataclass(frozen=True)
class _Server:
    """A table row: a tier, or one of its servers."""

    place: int
    tier: TierState
    capacity: Capacity

    @property
    def key(self) -> str:
        return f"{self.place} {self.tier.url} {self.capacity.server}"


def _used(server: _Server) -> str:
    limit = server.capacity.limit
    return human_size(server.capacity.used) + (f" of {human_size(limit)}" if limit else "")


def _evicted(server: _Server) -> str:
    policy, evicted = server.capacity.policy, server.capacity.evicted
    return f"{human_number(evicted)} ({policy})" if policy else human_number(evicted)


_STORES: list[Column[_Server]] = [
    Column("store", "Store", lambda row: row.tier.url, lambda row: row.place, wide=True),
    Column(
        "server",
        "Server",
        lambda row: " ".join(filter(None, (row.capacity.kind, row.capacity.server))) or UNKNOWN,
        lambda row: (row.capacity.kind, row.capacity.server),
        wide=True,
    ),
    Column(
        "answers",
        "Available",
        lambda row: "no" if row.tier.error else "yes",
        lambda row: bool(row.tier.error),
    ),
    Column(
        "latency",
        "Round trip",
        lambda row: human_latency(row.tier.latency),
        lambda row: row.tier.latency or 0.0,
        hint="median of a few requests",
    ),
    Column(
        "begins",
        "Minimum size",
        lambda row: human_size(row.tier.min_size),
        lambda row: row.tier.min_size,
        hint="serialized size at which values go to this store",
    ),
    Column(
        "used",
        "Used",
        _used,
        lambda row: row.capacity.used or 0,
        hint="by all users of the server, not only offload",
    ),
    Column(
        "keys",
        "Keys",
        lambda row: human_number(row.capacity.keys),
        lambda row: row.capacity.keys or 0,
    ),
    Column(
        "evicted",
        "Evicted",
        _evicted,
        lambda row: row.capacity.evicted or 0,
        hint="keys evicted because memory was full, with the eviction policy",
    ),
]


def _stores(request: Request) -> Response:
    cluster = state_of(request).cluster
    stores = cluster.stores.get(_PATIENCE)
    waiting = cluster.waiting.get(_PATIENCE).value or ()
    return render(
        request,
        "stores.html",
        title="Stores",
        stores=stores,
        errors=_errors(stores.value),
        swept=stores.value,
        servers=_store_table(request, stores.value),
        traffic=_traffic_table(request, stores.value),
        waiting=waiting,
    )


def _errors(state: StoreState | None) -> Mapping[str, str]:
    return {tier.url: tier.error for tier in state.tiers if tier.error} if state else {}


def _store_table(request: Request, state: StoreState | None) -> Table[_Server]:
    rows = [
        _Server(place, tier, capacity)
        for place, tier in enumerate(state.tiers if state is not None else ())
        for capacity in tier.capacity or (Capacity(),)
    ]
    return Table.of(
        request.query_params,
        _STORES,
        rows,
        caption="Stores",
        identify=lambda row: row.key,
        sort="store",
        descending=False,
        name="s",
    )


@dataclass(frozen=True)
class _Traffic:
    url: str
    figures: Figures


def _figure(counter: str) -> Callable[[_Traffic], int]:
    return lambda row: row.figures[counter]


def _slowest(step: str) -> Callable[[_Traffic], float | None]:
    return lambda row: row.figures.quantile(step, 0.99)


_SLOWEST = "99th percentile"
_TRAFFIC: list[Column[_Traffic]] = [
    Column("store", "Store", lambda row: row.url, lambda row: row.url, wide=True),
    Column.figure("uploaded", "Blobs written", _figure("blobs_uploaded"), human_number),
    Column.figure(
        "stored", "Bytes written", _figure("bytes_stored"), human_size, "after compression"
    ),
    Column.figure("fetched", "Bytes read", _figure("bytes_fetched"), human_size),
    Column.figure("failed", "Calls failed", _figure("calls_failed"), human_number),
    Column.figure("upload", "Upload, 99 %", _slowest("upload"), human_latency, _SLOWEST),
    Column.figure("fetch", "Fetch, 99 %", _slowest("fetch"), human_latency, _SLOWEST),
]


def _traffic_table(request: Request, state: StoreState | None) -> Table[_Traffic] | None:
    """Return the traffic of each tier; None if the counters are unavailable."""
    if state is None or state.tiers[0].error:
        return None
    dashboard = state_of(request)
    try:
        found = dashboard.statistics.report(TIME_RANGES["all"], tasks=True)
    except OffloadError:  # no counters, or a store just failed, which the next check shows
        return None
    return Table.of(
        request.query_params,
        _TRAFFIC,
        [
            _Traffic(url, figures)
            for url, figures in by_store(found, dashboard.runtime.store).items()
        ],
        caption="Traffic",
        identify=lambda row: row.url,
        sort="stored",
        name="t",
    )


ROUTES = [Route("/stores", _stores, name="stores")]
