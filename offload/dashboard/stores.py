"""The page of stores and workers: availability, capacity, traffic, configuration drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.rendering import render
from offload.dashboard.state import state_of
from offload.dashboard.statistics import TIME_RANGES
from offload.dashboard.tables import Column, Table
from offload.dashboard.workers import PATIENCE, table_of
from offload.doctor.health import StoreState, TierState
from offload.doctor.server import Capacity
from offload.errors import OffloadError
from offload.metrics.report import Figures, by_store
from offload.text import UNKNOWN, human_latency, human_number, human_size

__all__ = ("ROUTES",)


@dataclass(frozen=True)
class _Server:
    """A row: a tier, or one of its servers."""

    place: int
    tier: TierState
    capacity: Capacity

    @property
    def key(self) -> str:
        return f"{self.place} {self.tier.url} {self.capacity.server}"


def _room(server: _Server) -> str:
    limit = server.capacity.limit
    return human_size(server.capacity.used) + (f" of {human_size(limit)}" if limit else "")


def _dropped(server: _Server) -> str:
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
        hint="median of a few",
    ),
    Column(
        "begins",
        "Minimum size",
        lambda row: human_size(row.tier.min_size),
        lambda row: row.tier.min_size,
        hint="serialized bytes from which values go to this store",
    ),
    Column(
        "used",
        "Used",
        _room,
        lambda row: row.capacity.used or 0,
        hint="by everyone who uses the server",
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
        _dropped,
        lambda row: row.capacity.evicted or 0,
        hint="keys evicted because memory was full, and the policy",
    ),
]


def _stores(request: Request) -> Response:
    cluster = state_of(request).cluster
    workers = cluster.workers.get()
    stores = cluster.stores.get(PATIENCE)
    if workers.busy and workers.value is None:
        workers = cluster.workers.get(PATIENCE)
    compared = workers.value
    waiting = cluster.waiting.get(PATIENCE).value or ()
    return render(
        request,
        "stores.html",
        title="Stores and workers",
        stores=stores,
        errors=_errors(stores.value),
        swept=stores.value,
        servers=_servers(request, stores.value),
        traffic=traffic_of(request, stores.value),
        workers=workers,
        waiting=waiting,
        findings=compared.findings if compared is not None else (),
        table=table_of(request, compared.asked if compared is not None else None),
    )


def _errors(state: StoreState | None) -> Mapping[str, str]:
    return {tier.url: tier.error for tier in state.tiers if tier.error} if state else {}


def _servers(request: Request, state: StoreState | None) -> Table[_Server]:
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


def _counted(name: str, label: str, counter: str, hint: str = "") -> Column[_Traffic]:
    def value(row: _Traffic) -> int:
        return row.figures[counter]

    return Column(name, label, lambda row: human_number(value(row)), value, hint=hint)


def _sized(name: str, label: str, counter: str, hint: str = "") -> Column[_Traffic]:
    def value(row: _Traffic) -> int:
        return row.figures[counter]

    return Column(name, label, lambda row: human_size(value(row)), value, hint=hint)


def _timed(name: str, label: str, step: str) -> Column[_Traffic]:
    def value(row: _Traffic) -> float | None:
        return row.figures.quantile(step, 0.99)

    return Column(
        name,
        label,
        lambda row: human_latency(value(row)),
        lambda row: value(row) or 0.0,
        hint="the time within which 99 of 100 finish",
    )


_TRAFFIC: list[Column[_Traffic]] = [
    Column("store", "Store", lambda row: row.url, lambda row: row.url, wide=True),
    _counted("uploaded", "Blobs written", "blobs_uploaded"),
    _sized("stored", "Bytes written", "bytes_stored", "after compression"),
    _sized("fetched", "Bytes read", "bytes_fetched"),
    _counted("failed", "Calls failed", "calls_failed"),
    _timed("upload", "Upload, 99 %", "upload"),
    _timed("fetch", "Fetch, 99 %", "fetch"),
]


def traffic_of(request: Request, state: StoreState | None) -> Table[_Traffic] | None:
    """Return the figures of each tier; None if the tier with the counters is unavailable."""
    if state is None or state.tiers[0].error:
        return None
    dashboard = state_of(request)
    try:
        found = dashboard.statistics.report(TIME_RANGES["all"], tasks=True)
    except OffloadError:  # it has none, or just became unavailable, which the next check shows
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
