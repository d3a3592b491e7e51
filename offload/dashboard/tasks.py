"""Task pages: the list, and one task with its arguments."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.health import errors_of, recent_errors
from offload.dashboard.overview import latency, time_range_of
from offload.dashboard.rendering import Chart, Column, Table, ago, render
from offload.dashboard.state import state_of
from offload.dashboard.statistics import TIME_RANGES
from offload.metrics.counters import SIZES, size_names
from offload.metrics.report import OUTSIDE, Figures
from offload.text import (
    UNKNOWN,
    human_number,
    human_percent,
    human_ratio,
    human_size,
    human_time_saved,
)

_DRAWN = 10  # tasks in the chart


@dataclass(frozen=True)
class _Row:
    """A task or an argument.

    Attributes:
        latest: time of its latest error, in seconds since 1970; None if unknown.
    """

    name: str
    figures: Figures
    latest: float | None = None

    @property
    def mean_size(self) -> float | None:
        """Mean bytes of values sent by reference; None if there were none."""
        count = self.figures["values_offloaded"]
        return self.figures["bytes_offloaded"] / count if count else None


def _read(row: _Row) -> int:
    return row.figures["values_fetched"] + row.figures["cache_hits"]


def _hits(row: _Row) -> str:
    asked = row.figures["cache_hits"] + row.figures["cache_misses"]
    return f"{human_percent(row.figures.hit_ratio)} of {human_number(asked)}" if asked else UNKNOWN


def _errors(row: _Row) -> int:
    return sum(row.figures.errors.values())


def _counted(name: str) -> Callable[[_Row], int]:
    return lambda row: row.figures[name]


_FIGURES: list[Column[_Row]] = [
    Column.figure(
        "bytes", "Saved", _counted("bytes_offloaded"), human_size, "bytes kept out of messages"
    ),
    Column.figure("errors", "Errors", _errors, human_number),
    Column.figure(
        "size", "Mean size", lambda row: row.mean_size, human_size, "of values sent by reference"
    ),
    Column.figure(
        "values",
        "Values",
        _counted("values_seen"),
        human_number,
        "values that were inspected because they might be large",
    ),
    Column.figure("references", "By reference", _counted("values_offloaded"), human_number),
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
    Column.figure("fetched", "Read", _read, human_number, "values read, also from the node cache"),
    Column(
        "hits",
        "Cache hits",
        _hits,
        lambda row: row.figures.hit_ratio or 0.0,
        hint="share of large values read from the node cache",
    ),
]
_LATEST: Column[_Row] = Column(
    "latest",
    "Latest error",
    lambda row: ago(row.latest, time.time()),
    lambda row: row.latest or 0.0,
    wide=True,
)
_MEMO: list[Column[_Row]] = [
    Column.figure(
        "once",
        "Computed once",
        _counted("memo_hits"),
        human_number,
        "calls that returned a remembered result",
    ),
    Column.figure(
        "memo",
        "Memo hits",
        lambda row: row.figures.memo_hit_ratio,
        human_percent,
        "share of lookups that found a remembered result",
    ),
    Column.figure(
        "time",
        "Time saved",
        lambda row: row.figures.memo_seconds_saved,
        human_time_saved,
        "time that the remembered computations took originally",
    ),
]


def _named(label: str, *, linked: bool) -> Column[_Row]:
    def link(row: _Row) -> str:
        return "/task?" + urlencode({"name": row.name})

    return Column(
        "name",
        label,
        lambda row: row.name or OUTSIDE,
        lambda row: row.name,
        wide=True,
        link=link if linked else None,
    )


def _tasks(request: Request) -> Response:
    time_range = time_range_of(request, "all")
    wanted = request.query_params.get("q", "")
    statistics = state_of(request).statistics
    found = statistics.report(time_range, tasks=True)
    latest: dict[str, float] = {}
    for each in statistics.errors():
        latest.setdefault(each.task, each.at)
    rows = [
        _Row(name, figures, latest.get(name))
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
    statistics = state_of(request).statistics
    found = statistics.report(time_range, tasks=True)
    figures = found.tasks.get(name, Figures({}))
    recent = recent_errors(each for each in statistics.errors() if each.task == name)
    rows = [
        _Row(argument, each) for (task, argument), each in found.arguments.items() if task == name
    ]
    return render(
        request,
        "task.html",
        title=name or OUTSIDE,
        known=name in found.tasks or bool(recent),
        figures=figures,
        errors=errors_of(figures),
        recent=recent,
        charts=[_sizes(figures), latency(figures)],
        table=_table(request, rows, "Arguments and result", linked=False),
    )


def _chart(rows: list[_Row]) -> Chart:
    most = sorted(rows, key=lambda row: (-row.figures["bytes_offloaded"], row.name))[:_DRAWN]
    return Chart(
        "tasks",
        f"Bytes of the top {_DRAWN} tasks" if len(rows) > _DRAWN else "Bytes by task",
        [row.name or OUTSIDE for row in most],
        {
            "kept out of messages": [row.figures["bytes_offloaded"] for row in most],
            "uploaded": [row.figures["bytes_uploaded"] for row in most],
            "fetched": [row.figures["bytes_fetched"] for row in most],
        },
        unit="bytes",
        heading="Task",
    )


def _sizes(figures: Figures) -> Chart:
    """Return a chart of a task's values by size."""
    bounds = [0, *SIZES]
    counts = {each: [figures[name] for name in size_names(each)] for each in bounds}
    used = [each for each, (values, *_) in counts.items() if values]
    shown = [each for each in bounds if used and used[0] <= each <= used[-1]]
    return Chart(
        "sizes",
        "Values by size",
        [_size_label(each) for each in shown],
        {"values": [counts[each][0] for each in shown]},
        heading="Serialized size",
    )


def _size_label(at_least: int) -> str:
    if not at_least:
        return f"below {human_size(SIZES[0])}"
    if at_least == SIZES[-1]:
        return f"{human_size(at_least)} or more"
    return f"{human_size(at_least)} to {human_size(2 * at_least)}"


def _table(request: Request, rows: list[_Row], caption: str, *, linked: bool) -> Table[_Row]:
    label = "Task" if linked else "Argument"
    memo = linked and any(row.figures.uses_memo for row in rows)
    return Table.of(
        request.query_params,
        [
            _named(label, linked=linked),
            *_FIGURES[:2],
            *([_LATEST] if linked and any(row.latest for row in rows) else ()),
            *_FIGURES[2:],
            *(_MEMO if memo else ()),
        ],
        rows,
        caption=caption,
        identify=lambda row: row.name,
        sort="bytes",
        empty="No task has sent or read a large value yet." if linked else "No arguments.",
    )


ROUTES = [Route("/tasks", _tasks, name="tasks"), Route("/task", _task, name="task")]
