"""The overview page: savings and errors."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.rendering import Chart, along_time, render
from offload.dashboard.state import state_of
from offload.dashboard.statistics import TIME_RANGES, Timeline, TimeRange
from offload.metrics.counters import STEPS
from offload.metrics.report import Figures

__all__ = ("ROUTES", "latency", "time_range_of", "traffic", "troubles")

_TROUBLES = {
    "errors_unavailable": "store unavailable",
    "errors_missing": "values missing",
    "errors_altered": "values altered",
    "errors_serialising": "not serializable, or too large",
    "errors_code": "class not shipped or loaded",
    "errors_other": "other errors",
    "refs_refused": "references refused",
    "classes_refused": "classes refused",
    "cache_altered": "cache files altered",
    "outage_inline": "sent inline during an outage",
    "failures_truncated": "failures stored truncated",
    "releases_failed": "holds not released early",
    "task_retries": "tasks retried",
    "store_retries": "store calls retried",
}
_TOP = 8  # tasks


def _overview(request: Request) -> Response:
    time_range = time_range_of(request)
    statistics = state_of(request).statistics
    found = statistics.report(time_range)
    timeline = statistics.timeline(time_range, found.start)
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
    """Return the requested time range."""
    return TIME_RANGES.get(request.query_params.get("since", ""), TIME_RANGES[default])


def troubles(figures: Figures) -> dict[str, int]:
    """Return descriptions of errors, with their counts."""
    return {text: figures[name] for name, text in _TROUBLES.items() if figures[name]}


def traffic(timeline: Timeline) -> Chart:
    """Return a chart of bytes over time: kept out of messages, written, and read."""
    return along_time(
        "traffic",
        f"Bytes per {_each(timeline)}",
        list(timeline.figures),
        {
            "kept out of messages": [each["bytes_offloaded"] for each in timeline.figures.values()],
            "written to the store": [each["bytes_stored"] for each in timeline.figures.values()],
            "read from the store": [each["bytes_fetched"] for each in timeline.figures.values()],
        },
        unit="bytes",
    )


def values(timeline: Timeline) -> Chart:
    """Return a chart of values over time: stored, deduplicated, fetched, and failed."""
    figures = timeline.figures.values()
    return along_time(
        "values",
        f"Values per {_each(timeline)}",
        list(timeline.figures),
        {
            "stored": [each["values_offloaded"] - each["values_deduplicated"] for each in figures],
            "deduplicated": [each["values_deduplicated"] for each in figures],
            "fetched": [each["values_fetched"] for each in figures],
            "from the node cache": [each["cache_hits"] for each in figures],
            "failed": [sum(each.errors.values()) for each in figures],
        },
    )


def latency(figures: Figures) -> Chart:
    """Return a chart of latency percentiles by step."""
    steps = [step for step in STEPS if figures.times(step)[-1]]
    series = {
        label: [_bounded(figures.quantile(step, part)) for step in steps]
        for label, part in {"median": 0.5, "95 %": 0.95, "99 %": 0.99}.items()
    }
    return Chart(
        "latency",
        "Latency by step",
        steps,
        series,
        unit="seconds",
        kind="bars",
    )


def _bounded(seconds: float | None) -> float:
    """Limit a time to what can be drawn: the last bucket has no upper bound."""
    return min(seconds or 0.0, 60.0)


def _each(timeline: Timeline) -> str:
    return {60: "minute", 3600: "hour", 86400: "day"}[timeline.seconds]


ROUTES = [Route("/", _overview, name="overview")]
