"""The overview page: health, savings, current activity, and trends."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.health import errors_of, events_of, stores_of, verdict, workers_of
from offload.dashboard.rendering import Chart, along_time, render
from offload.dashboard.state import state_of
from offload.dashboard.statistics import TIME_RANGES, Timeline, TimeRange
from offload.metrics.counters import STEPS
from offload.metrics.report import Figures
from offload.text import human_count

_PATIENCE = 0.1  # seconds that the first request waits for each check


def _overview(request: Request) -> Response:
    state = state_of(request)
    time_range = time_range_of(request)
    statistics = state.statistics
    found = statistics.report(time_range)
    timeline = statistics.timeline(time_range, found.start)
    workers = state.cluster.workers.get()
    cards = [*stores_of(state.cluster.stores.get(_PATIENCE)), workers_of(workers)]
    errors = errors_of(found.total, statistics.errors(), found.start)
    level, answer = verdict(cards, errors, time_range.phrase)
    return render(
        request,
        "overview.html",
        title="Overview",
        time_range=time_range,
        time_ranges=TIME_RANGES,
        level=level,
        answer=answer,
        cards=cards,
        errors=errors,
        events=events_of(found.total),
        waiting=state.cluster.waiting.get().value or (),
        total=found.total,
        threshold=state.runtime.settings.threshold,
        rates=statistics.rates(),
        charts=[traffic(timeline), values(timeline)],
        latencies=latency(found.total),
    )


def time_range_of(request: Request, default: str = "") -> TimeRange:
    """Return the requested time range, or the one named *default* if none was requested.

    If that isn't a name of one, return the shortest time range that has data.
    """
    asked = TIME_RANGES.get(request.query_params.get("since", "") or default)
    return asked or state_of(request).statistics.shortest()


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
    labels = [f"{step} ({_times(figures, step)})" for step in steps]
    return Chart("latency", "Latency by step", labels, series, unit="seconds", heading="Step")


def _times(figures: Figures, step: str) -> str:
    return human_count(figures.times(step)[-1], "time")


def _bounded(seconds: float | None) -> float:
    """Make a time finite so that it can be drawn: the last bucket has no upper bound."""
    return min(seconds or 0.0, 60.0)


def _each(timeline: Timeline) -> str:
    return {60: "minute", 3600: "hour", 86400: "day"}[timeline.seconds]


ROUTES = [Route("/", _overview, name="overview")]
