"""The page of stores and workers: whether they answer, how full they are, whether they agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.board import board_of
from offload.dashboard.rendering import render
from offload.dashboard.tables import Column, Table
from offload.dashboard.traffic import traffic_of
from offload.dashboard.workers import PATIENCE, table_of
from offload.doctor.health import StoreState, TierState
from offload.doctor.server import Capacity
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
        "Answers",
        lambda row: "no" if row.tier.error else "yes",
        lambda row: bool(row.tier.error),
    ),
    Column(
        "latency",
        "Round trip",
        lambda row: human_latency(row.tier.latency),
        lambda row: row.tier.latency or 0.0,
        hint="the median of some",
    ),
    Column(
        "begins",
        "Values from",
        lambda row: human_size(row.tier.min_size),
        lambda row: row.tier.min_size,
        hint="serialised bytes from which a value goes there",
    ),
    Column(
        "used",
        "Used",
        _room,
        lambda row: row.capacity.used or 0,
        hint="by all who use the server",
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
        hint="keys dropped as memory was full, and the policy",
    ),
]


def _stores(request: Request) -> Response:
    fleet = board_of(request).fleet
    workers = fleet.workers.get()
    stores = fleet.stores.get(PATIENCE)
    if workers.busy and workers.value is None:
        workers = fleet.workers.get(PATIENCE)
    compared = workers.value
    waiting = fleet.waiting.get(PATIENCE).value or ()
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


ROUTES = [Route("/stores", _stores, name="stores")]
