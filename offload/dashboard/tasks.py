"""Pages of tasks: all, and one with its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.counters import STEPS
from offload.dashboard.board import board_of
from offload.dashboard.formats import percent, times
from offload.dashboard.overview import latency, stretch_of, troubles
from offload.dashboard.rendering import render
from offload.dashboard.statistics import STRETCHES
from offload.dashboard.tables import Column, Table
from offload.ref import human_size
from offload.stats import Figures

__all__ = ("ROUTES",)


@dataclass(frozen=True)
class _Row:
    name: str
    figures: Figures


def _ratio(row: _Row) -> float:
    ratio = row.figures.deduplication
    return -1.0 if ratio is None else ratio


def _hits(row: _Row) -> float:
    ratio = row.figures.hit_ratio
    return -1.0 if ratio is None else ratio


def _fetched(row: _Row) -> int:
    return row.figures["values_fetched"] + row.figures["cache_hits"]


def _errors(row: _Row) -> int:
    return sum(row.figures.errors.values())


def _counted(name: str, label: str, counter: str, hint: str = "") -> Column[_Row]:
    def key(row: _Row) -> int:
        return row.figures[counter]

    return Column(name, label, lambda row: f"{key(row):,}", key, hint=hint)


def _sized(name: str, label: str, counter: str, hint: str = "") -> Column[_Row]:
    def key(row: _Row) -> int:
        return row.figures[counter]

    return Column(name, label, lambda row: human_size(key(row)), key, hint=hint)


_FIGURES: list[Column[_Row]] = [
    _counted("values", "Values", "values_seen", "looked at, as they were not certainly small"),
    _counted("references", "By reference", "values_offloaded"),
    _sized("bytes", "Bytes", "bytes_offloaded", "kept out of messages and results"),
    _sized("uploaded", "Uploaded", "bytes_uploaded", "before compression"),
    Column(
        "dedup",
        "Dedup",
        lambda row: times(row.figures.deduplication),
        _ratio,
        hint="bytes for each uploaded",
    ),
    Column(
        "fetched",
        "Fetched",
        lambda row: f"{_fetched(row):,}",
        _fetched,
        hint="values, the node cache's among them",
    ),
    Column(
        "hits",
        "Cache hits",
        lambda row: percent(row.figures.hit_ratio),
        _hits,
        hint="of the node cache",
    ),
    Column("errors", "Errors", lambda row: f"{_errors(row):,}", _errors),
]


def _named(label: str, *, linked: bool) -> Column[_Row]:
    def link(row: _Row) -> str:
        return "/task?" + urlencode({"name": row.name})

    return Column(
        "name",
        label,
        lambda row: row.name or "(none)",
        lambda row: row.name,
        wide=True,
        link=link if linked else None,
    )


def _tasks(request: Request) -> Response:
    stretch = stretch_of(request, "all")
    wanted = request.query_params.get("q", "")
    found = board_of(request).statistics.report(stretch, tasks=True)
    rows = [
        _Row(name, figures)
        for name, figures in found.tasks.items()
        if wanted.casefold() in name.casefold()
    ]
    return render(
        request,
        "tasks.html",
        title="Tasks",
        stretch=stretch,
        stretches=STRETCHES,
        table=_table(request, rows, "Tasks", linked=True),
    )


def _task(request: Request) -> Response:
    name = request.query_params.get("name", "")
    stretch = STRETCHES["all"]
    found = board_of(request).statistics.report(stretch, tasks=True)
    figures = found.tasks.get(name, Figures({}))
    rows = [
        _Row(argument, each) for (task, argument), each in found.arguments.items() if task == name
    ]
    return render(
        request,
        "task.html",
        title=name or "(none)",
        known=name in found.tasks,
        figures=figures,
        troubles=troubles(figures),
        steps={step: text for step, text in STEPS.items() if figures.times(step)[-1]},
        charts=[latency(figures)],
        table=_table(request, rows, "Arguments, and the result", linked=False),
    )


def _table(request: Request, rows: list[_Row], caption: str, *, linked: bool) -> Table[_Row]:
    label = "Task" if linked else "Argument"
    return Table.of(
        request.query_params,
        [_named(label, linked=linked), *_FIGURES],
        rows,
        caption=caption,
        identify=lambda row: row.name,
        sort="bytes",
    )


ROUTES = [Route("/tasks", _tasks, name="tasks"), Route("/task", _task, name="task")]
