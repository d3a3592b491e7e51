"""Worker pages: traffic, node cache, and configuration drift of each worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.rendering import Column, Table, render
from offload.dashboard.state import Compared, DashboardState, state_of
from offload.dashboard.statistics import TIME_RANGES
from offload.errors import OffloadError
from offload.inspect.config_drift import differing_settings
from offload.inspect.workers import Worker
from offload.metrics.report import Figures
from offload.text import UNKNOWN, human_number, human_percent, human_size

_PATIENCE = 3.0  # seconds that the first request waits for data
_SHOWN = 3  # settings named in a row
_STATES = {"without": "missing", "silent": "no reply", "unreadable": "unreadable reply"}


@dataclass(frozen=True)
class _Row:
    """A worker.

    Attributes:
        figures: counters of all its processes in the last 24 hours.
        differing: settings that differ from this process, as (worker's value, our value).
    """

    worker: Worker
    figures: Figures
    differing: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.worker.name

    @property
    def asked(self) -> int:
        """Number of large values that it read."""
        return self.figures["cache_hits"] + self.figures["cache_misses"]

    @property
    def hits(self) -> str:
        if not self.asked:
            return UNKNOWN
        return f"{human_percent(self.figures.hit_ratio)} of {human_number(self.asked)}"

    @property
    def cached(self) -> int:
        """Bytes in its machine's node cache."""
        return _whole(self.worker.cache.get("bytes"))

    @property
    def cache(self) -> str:
        if not self.worker.cache:
            return UNKNOWN
        limit = _whole(self.worker.cache.get("limit"))
        return human_size(self.cached) + (f" of {human_size(limit)}" if limit else "")

    @property
    def prefetched(self) -> str:
        count = self.figures["prefetch_done"]
        return f"{human_number(count)} ({human_size(self.figures['prefetch_bytes'])})"

    @property
    def differences(self) -> str:
        names = list(self.differing)
        more = len(names) - _SHOWN
        return ", ".join(names[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


def _whole(value: object) -> int:
    return value if type(value) is int else 0


_COLUMNS: list[Column[_Row]] = [
    Column(
        "name",
        "Worker",
        lambda row: row.name,
        lambda row: row.name,
        wide=True,
        link=lambda row: "/worker?" + urlencode({"name": row.name}),
    ),
    Column(
        "state",
        "Offload",
        lambda row: _STATES.get(row.worker.state, row.worker.state),
        lambda row: row.worker.state,
        wide=True,
    ),
    Column(
        "version",
        "Version",
        lambda row: row.worker.version or UNKNOWN,
        lambda row: row.worker.version,
    ),
    Column(
        "cache",
        "Cache used",
        lambda row: row.cache,
        lambda row: row.cached,
        hint="used in its machine's node cache",
    ),
    Column(
        "hits",
        "Cache hits",
        lambda row: row.hits,
        lambda row: row.figures.hit_ratio or 0.0,
        hint="share of large values read from the node cache",
    ),
    Column.figure(
        "fetched",
        "Fetched",
        lambda row: row.figures["bytes_fetched"],
        human_size,
        "bytes read from the store by all its processes",
    ),
    Column(
        "prefetched",
        "Prefetched",
        lambda row: row.prefetched,
        lambda row: row.figures["prefetch_done"],
        hint="values fetched while their tasks were waiting",
    ),
    Column.figure("errors", "Errors", lambda row: sum(row.figures.errors.values()), human_number),
    Column(
        "differs",
        "Differs in",
        lambda row: row.differences or ("nothing" if row.worker.reply else UNKNOWN),
        lambda row: len(row.differing),
        wide=True,
        hint="settings that differ from the dashboard's process",
    ),
]


def _rows(state: DashboardState, compared: Compared | None) -> list[_Row]:
    if compared is None:
        return []
    counted: Mapping[str, Figures] = {}
    with suppress(OffloadError):  # no counters, or the store is unavailable: see the stores page
        counted = state.statistics.report(TIME_RANGES["1d"], tasks=True).workers
    return [
        _Row(
            worker,
            counted.get(worker.name, Figures({})),
            differing_settings(compared.own, worker),
        )
        for worker in compared.asked.workers
    ]


def _workers(request: Request) -> Response:
    state = state_of(request)
    kept = state.cluster.workers.get(_PATIENCE)
    compared = kept.value
    findings: Sequence[Any] = compared.findings if compared is not None else ()
    return render(
        request,
        "workers.html",
        title="Workers",
        workers=kept,
        findings=findings,
        table=Table.of(
            request.query_params,
            _COLUMNS,
            _rows(state, compared),
            caption="Workers",
            identify=lambda row: row.name,
            sort="name",
            descending=False,
            empty="No worker replied. Start one, or check that it uses the broker of this app.",
        ),
    )


def _worker(request: Request) -> Response:
    name = request.query_params.get("name", "")
    state = state_of(request)
    kept = state.cluster.workers.get(_PATIENCE)
    row = next((row for row in _rows(state, kept.value) if row.name == name), None)
    return render(
        request,
        "worker.html",
        title=name or "(none)",
        kept=kept,
        worker=None if row is None else row.worker,
        row=row,
        differing={} if row is None else row.differing,
        sections={} if row is None else _sections(row.worker.reply),
    )


def _sections(reply: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Split a reply into sections."""
    parts = {name: value for name, value in reply.items() if isinstance(value, dict)}
    rest = {name: value for name, value in reply.items() if not isinstance(value, dict)}
    return {"worker": rest, **parts}


ROUTES = [
    Route("/workers", _workers, name="workers"),
    Route("/worker", _worker, name="worker"),
]
