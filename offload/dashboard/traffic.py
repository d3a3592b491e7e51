"""The table of what each store took and gave, in all of the time that was counted."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from offload.dashboard.board import board_of
from offload.dashboard.statistics import STRETCHES
from offload.dashboard.tables import Column, Table
from offload.doctor.health import StoreState
from offload.errors import OffloadError
from offload.metrics.report import Figures, by_store
from offload.text import human_latency, human_number, human_size

__all__ = ("traffic_of",)


@dataclass(frozen=True)
class _Row:
    url: str
    figures: Figures


def _counted(name: str, label: str, counter: str, hint: str = "") -> Column[_Row]:
    def value(row: _Row) -> int:
        return row.figures[counter]

    return Column(name, label, lambda row: human_number(value(row)), value, hint=hint)


def _sized(name: str, label: str, counter: str, hint: str = "") -> Column[_Row]:
    def value(row: _Row) -> int:
        return row.figures[counter]

    return Column(name, label, lambda row: human_size(value(row)), value, hint=hint)


def _timed(name: str, label: str, step: str) -> Column[_Row]:
    def value(row: _Row) -> float | None:
        return row.figures.quantile(step, 0.99)

    return Column(
        name,
        label,
        lambda row: human_latency(value(row)),
        lambda row: value(row) or 0.0,
        hint="the time within which 99 of 100 are done",
    )


_COLUMNS: list[Column[_Row]] = [
    Column("store", "Store", lambda row: row.url, lambda row: row.url, wide=True),
    _counted("uploaded", "Blobs written", "blobs_uploaded"),
    _sized("stored", "Bytes written", "bytes_stored", "after compression"),
    _sized("fetched", "Bytes read", "bytes_fetched"),
    _counted("failed", "Calls failed", "calls_failed"),
    _timed("upload", "Upload, 99 %", "upload"),
    _timed("fetch", "Fetch, 99 %", "fetch"),
]


def traffic_of(request: Request, state: StoreState | None) -> Table[_Row] | None:
    """Return the figures of each tier; None where the one that keeps them does not answer."""
    if state is None or state.tiers[0].error:
        return None
    board = board_of(request)
    try:
        found = board.statistics.report(STRETCHES["all"], tasks=True)
    except OffloadError:  # it keeps none, or went away just now, which is told when it is looked at
        return None
    return Table.of(
        request.query_params,
        _COLUMNS,
        [_Row(url, figures) for url, figures in by_store(found, board.runtime.store).items()],
        caption="What was counted",
        identify=lambda row: row.url,
        sort="stored",
        name="t",
    )
