"""Pages of tasks: the list, and one task with its arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.health import errors_of
from offload.dashboard.overview import latency, time_range_of
from offload.dashboard.rendering import Chart, Column, Table, render
from offload.dashboard.state import state_of
from offload.dashboard.statistics import TIME_RANGES
from offload.metrics.counters import STEPS
from offload.metrics.report import Figures
from offload.text import human_number, human_percent, human_ratio, human_size, human_time_saved

__all__ = ("ROUTES",)

_DRAWN = 10  # tasks


@dataclass(frozen=True)
class _Row:
    name: str
    figures: Figures


def _fetched(row: _Row) -> int:
    return row.figures["values_fetched"] + row.figures["cache_hits"]


def _errors(row: _Row) -> int:
    return sum(row.figures.errors.values())


def _counted(name: str) -> Callable[[_Row], int]:
    return lambda row: row.figures[name]


_FIGURES: list[Column[_Row]] = [
    Column.figure(
        "values",
        "Values",
        _counted("values_seen"),
        human_number,
        "inspected, because they could be large",
    ),
    Column.figure("references", "By reference", _counted("values_offloaded"), human_number),
    Column.figure(
        "bytes", "Bytes", _counted("bytes_offloaded"), human_size, "kept out of messages"
    ),
    Column.figure(
        "uploaded", "Uploaded", _counted("bytes_uploaded"), human_size, "before compression"
    ),
    Column.figure(
        "dedup",
        "Dedup",
        lambda row: row.figures.deduplication,
        human_ratio,
        "bytes sent by reference per byte uploaded",
    ),
    Column.figure(
        "fetched", "Fetched", _fetched, human_number, "values, including those from the node cache"
    ),
    Column.figure("hits", "Cache hits", lambda row: row.figures.hit_ratio, human_percent),
    Column.figure("errors", "Errors", _errors, human_number),
]
_MEMO: list[Column[_Row]] = [
    Column.figure(
        "once",
        "Computed once",
        _counted("memo_hits"),
        human_number,
        "calls that returned an earlier result",
    ),
    Column.figure(
        "memo",
        "Memo hits",
        lambda row: row.figures.memo_hit_ratio,
        human_percent,
        "share of the calls for which an earlier result was looked up",
    ),
    Column.figure(
        "time",
        "Time saved",
        lambda row: row.figures.memo_seconds_saved,
        human_time_saved,
        "how long the saved computations took when they ran",
    ),
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
    time_range = time_range_of(request, "all")
    wanted = request.query_params.get("q", "")
    found = state_of(request).statistics.report(time_range, tasks=True)
    rows = [
        _Row(name, figures)
        for name, figures in found.tasks.items()
        if wanted.casefold() in name.casefold()
    ]
    return render(
        request,
        "tasks.html",
        title="Tasks",
        time_range=time_range,
        time_ranges=TIME_RANGES,
        charts=[_chart(rows)],
        table=_table(request, rows, "Tasks", linked=True),
    )


def _task(request: Request) -> Response:
    name = request.query_params.get("name", "")
    time_range = TIME_RANGES["all"]
    dashboard = state_of(request).statistics
    found = dashboard.report(time_range, tasks=True)
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
        errors=errors_of(figures, [e for e in dashboard.errors() if e.task == name]),
        steps={step: text for step, text in STEPS.items() if figures.times(step)[-1]},
        charts=[latency(figures)],
        table=_table(request, rows, "Arguments and result", linked=False),
    )


def _chart(rows: list[_Row]) -> Chart:
    most = sorted(rows, key=lambda row: (-row.figures["bytes_offloaded"], row.name))[:_DRAWN]
    return Chart(
        "tasks",
        f"Bytes of the top {_DRAWN} tasks" if len(rows) > _DRAWN else "Bytes by task",
        [row.name or "(none)" for row in most],
        {
            "kept out of messages": [row.figures["bytes_offloaded"] for row in most],
            "uploaded": [row.figures["bytes_uploaded"] for row in most],
            "fetched": [row.figures["bytes_fetched"] for row in most],
        },
        unit="bytes",
        heading="Task",
    )


def _table(request: Request, rows: list[_Row], caption: str, *, linked: bool) -> Table[_Row]:
    label = "Task" if linked else "Argument"
    memo = linked and any(row.figures.uses_memo for row in rows)
    return Table.of(
        request.query_params,
        [_named(label, linked=linked), *_FIGURES, *(_MEMO if memo else ())],
        rows,
        caption=caption,
        identify=lambda row: row.name,
        sort="bytes",
    )


ROUTES = [Route("/tasks", _tasks, name="tasks"), Route("/task", _task, name="task")]
