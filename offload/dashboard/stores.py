"""Pages of stores and workers: availability, capacity, traffic, and configuration drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.rendering import Column, Table, render
from offload.dashboard.state import state_of
from offload.dashboard.statistics import TIME_RANGES
from offload.doctor.health import StoreState, TierState
from offload.doctor.server import Capacity
from offload.errors import OffloadError
from offload.inspect.workers import Worker, Workers
from offload.metrics.report import Figures, by_store
from offload.text import UNKNOWN, human_latency, human_number, human_size

__all__ = ("ROUTES",)

_PATIENCE = 3.0  # seconds that the first request waits for data


@dataclass(frozen=True)
class _Server:
    """A row: a tier, or one of its servers."""

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
        _used,
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
        _evicted,
        lambda row: row.capacity.evicted or 0,
        hint="keys evicted because memory was full, and the policy",
    ),
]


def _stores(request: Request) -> Response:
    cluster = state_of(request).cluster
    workers = cluster.workers.get()
    stores = cluster.stores.get(_PATIENCE)
    if workers.busy and workers.value is None:
        workers = cluster.workers.get(_PATIENCE)
    compared = workers.value
    waiting = cluster.waiting.get(_PATIENCE).value or ()
    return render(
        request,
        "stores.html",
        title="Stores and workers",
        stores=stores,
        errors=_errors(stores.value),
        swept=stores.value,
        servers=_store_table(request, stores.value),
        traffic=_traffic_table(request, stores.value),
        workers=workers,
        waiting=waiting,
        findings=compared.findings if compared is not None else (),
        table=_worker_table(request, compared.asked if compared is not None else None),
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


_SLOWEST = "the time within which 99 of 100 finish"
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


def _cached(worker: Worker, name: str = "bytes") -> int:
    """Return a figure of the node cache on the worker's machine."""
    return _whole(worker.cache.get(name))


def _cache(worker: Worker) -> str:
    if not worker.cache:
        return UNKNOWN
    limit = _cached(worker, "limit")
    return human_size(_cached(worker)) + (f" of {human_size(limit)}" if limit else "")


def _threshold(worker: Worker) -> int:
    return _whole(worker.settings.get("threshold"))


def _whole(value: object) -> int:
    return value if type(value) is int else 0


def _counted(counter: str) -> Callable[[Worker], int | None]:
    """Return a function that returns a counter of a worker; None if it didn't reply."""
    return lambda worker: _whole(worker.counters.get(counter)) if worker.reply else None


_WORKERS: list[Column[Worker]] = [
    Column(
        "name",
        "Worker",
        lambda worker: worker.name,
        lambda worker: worker.name,
        wide=True,
        link=lambda worker: "/worker?" + urlencode({"name": worker.name}),
    ),
    Column("state", "Offload", lambda worker: worker.state, lambda worker: worker.state, wide=True),
    Column(
        "app", "App", lambda worker: worker.app or UNKNOWN, lambda worker: worker.app, wide=True
    ),
    Column(
        "version",
        "Version",
        lambda worker: worker.version or UNKNOWN,
        lambda worker: worker.version,
    ),
    Column(
        "threshold",
        "Threshold",
        lambda worker: human_size(_threshold(worker)) if worker.reply else UNKNOWN,
        _threshold,
    ),
    Column(
        "cached",
        "Cached values",
        lambda worker: human_number(_cached(worker, "values")) if worker.cache else UNKNOWN,
        lambda worker: _cached(worker, "values"),
        hint="in its machine's node cache",
    ),
    Column(
        "cache",
        "Cached bytes",
        _cache,
        _cached,
        hint="in its machine's node cache",
    ),
    Column.figure(
        "fetched",
        "Fetched",
        _counted("values_fetched"),
        human_number,
        "values, by its main process only",
    ),
    Column.figure(
        "prefetched",
        "Prefetched",
        _counted("prefetch_done"),
        human_number,
        "values, while their tasks were waiting",
    ),
]


def _worker_table(request: Request, asked: Workers | None) -> Table[Worker]:
    """Return the table of workers; empty if they haven't been asked yet."""
    return Table.of(
        request.query_params,
        _WORKERS,
        asked.workers if asked is not None else (),
        caption="Workers",
        identify=lambda worker: worker.name,
        sort="name",
        descending=False,
        name="w",
    )


def _worker(request: Request) -> Response:
    name = request.query_params.get("name", "")
    kept = state_of(request).cluster.workers.get(_PATIENCE)
    found = [each for each in kept.value.asked.workers if each.name == name] if kept.value else []
    return render(
        request,
        "worker.html",
        title=name or "(none)",
        kept=kept,
        worker=found[0] if found else None,
        sections=_sections(found[0].reply) if found else {},
    )


def _sections(reply: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Split a reply into sections."""
    parts = {name: value for name, value in reply.items() if isinstance(value, dict)}
    rest = {name: value for name, value in reply.items() if not isinstance(value, dict)}
    return {"worker": rest, **parts}


ROUTES = [
    Route("/stores", _stores, name="stores"),
    Route("/worker", _worker, name="worker"),
]
