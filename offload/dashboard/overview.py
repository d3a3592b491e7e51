"""The first page: what is saved, and whether anything is wrong."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.charts import Chart, along_time
from offload.dashboard.rendering import render
from offload.dashboard.state import state_of
from offload.dashboard.statistics import TIME_RANGES, Timeline, TimeRange
from offload.metrics.counters import STEPS
from offload.metrics.report import Figures

__all__ = ("ROUTES", "latency", "time_range_of", "traffic", "troubles")

_TROUBLES = {
    "errors_unavailable": "store away",
    "errors_missing": "content missing",
    "errors_altered": "content altered",
    "errors_serialising": "could not be carried",
    "errors_code": "class not shipped or loaded",
    "errors_other": "other errors",
    "refs_refused": "references refused",
    "classes_refused": "classes refused",
    "cache_altered": "cache files altered",
    "outage_inline": "sent inline in an outage",
    "releases_failed": "not released early",
    "task_retries": "tasks sent again",
    "store_retries": "store calls tried again",
}
_TOP = 8  # tasks


def _overview(request: Request) -> Response:
    time_range = time_range_of(request)
    statistics = state_of(request).statistics
    found = statistics.report(time_range)
    timeline = statistics.timeline(time_range, found.begin)
    return render(
        request,
        "overview.html",
        title="Overview",
        time_range=time_range,
        time_ranges=TIME_RANGES,
        total=found.total,
        troubles=troubles(found.total),
        charts=[traffic(timeline), values(timeline), latency(found.total)],
    )


def time_range_of(request: Request, default: str = "1d") -> TimeRange:
    """Return the time_range of time that is asked for."""
    return TIME_RANGES.get(request.query_params.get("since", ""), TIME_RANGES[default])


def troubles(figures: Figures) -> dict[str, int]:
    """Return what went wrong, in words, and how often."""
    return {text: figures[name] for name, text in _TROUBLES.items() if figures[name]}


def traffic(timeline: Timeline) -> Chart:
    """Return bytes along the time: kept from the broker, written to the store, read from it."""
    return along_time(
        "traffic",
        f"Bytes each {_each(timeline)}",
        list(timeline.figures),
        {
            "kept out of messages": [each["bytes_offloaded"] for each in timeline.figures.values()],
            "written to the store": [each["bytes_stored"] for each in timeline.figures.values()],
            "read from the store": [each["bytes_fetched"] for each in timeline.figures.values()],
        },
        unit="bytes",
    )


def values(timeline: Timeline) -> Chart:
    """Return values along the time: new, known, taken from the node cache, failed."""
    figures = timeline.figures.values()
    return along_time(
        "values",
        f"Values each {_each(timeline)}",
        list(timeline.figures),
        {
            "stored": [each["values_offloaded"] - each["values_deduplicated"] for each in figures],
            "stored before": [each["values_deduplicated"] for each in figures],
            "fetched": [each["values_fetched"] for each in figures],
            "from the node cache": [each["cache_hits"] for each in figures],
            "failed": [sum(each.errors.values()) for each in figures],
        },
    )


def latency(figures: Figures) -> Chart:
    """Return within which time half, and nearly all, of each step were done."""
    steps = [step for step in STEPS if figures.times(step)[-1]]
    series = {
        label: [_bounded(figures.quantile(step, part)) for step in steps]
        for label, part in {"half": 0.5, "95 %": 0.95, "99 %": 0.99}.items()
    }
    return Chart(
        "latency",
        "Time within which a step was done",
        steps,
        series,
        unit="seconds",
        kind="bars",
    )


def _bounded(seconds: float | None) -> float:
    """Return a time that can be drawn: beyond the last bound all are alike."""
    return min(seconds or 0.0, 60.0)


def _each(timeline: Timeline) -> str:
    return {60: "minute", 3600: "hour", 86400: "day"}[timeline.seconds]


ROUTES = [Route("/", _overview, name="overview")]
