"""The table of workers, and the page of one with its whole reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.rendering import render
from offload.dashboard.state import state_of
from offload.dashboard.tables import Column, Table
from offload.inspect.workers import Worker, Workers
from offload.text import UNKNOWN, human_number, human_size

__all__ = ("PATIENCE", "ROUTES", "table_of")

PATIENCE = 3.0
"""Seconds that the first request waits for data."""


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


def _counted(name: str, label: str, counter: str, hint: str) -> Column[Worker]:
    def value(worker: Worker) -> int:
        return _whole(worker.counters.get(counter))

    return Column(
        name,
        label,
        lambda worker: human_number(value(worker)) if worker.reply else UNKNOWN,
        value,
        hint=hint,
    )


_COLUMNS: list[Column[Worker]] = [
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
    _counted("fetched", "Fetched", "values_fetched", "values, by its main process only"),
    _counted("prefetched", "Prefetched", "prefetch_done", "values, while their tasks were waiting"),
]


def table_of(request: Request, asked: Workers | None) -> Table[Worker]:
    """Return the table of workers; empty if they haven't been asked yet."""
    return Table.of(
        request.query_params,
        _COLUMNS,
        asked.workers if asked is not None else (),
        caption="Workers",
        identify=lambda worker: worker.name,
        sort="name",
        descending=False,
        name="w",
    )


def _worker(request: Request) -> Response:
    name = request.query_params.get("name", "")
    kept = state_of(request).cluster.workers.get(PATIENCE)
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
    return {"itself": rest, **parts}


ROUTES = [Route("/worker", _worker, name="worker")]
