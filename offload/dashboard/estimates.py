"""The estimates page: what each threshold would save."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.overview import time_range_of
from offload.dashboard.rendering import Chart, Column, Table, render
from offload.dashboard.state import state_of
from offload.dashboard.statistics import TIME_RANGES
from offload.metrics.estimate import Candidate, Choices, Estimate, estimate
from offload.metrics.report import OUTSIDE
from offload.text import human_number, human_size, human_time_saved


def _estimate(request: Request) -> Response:
    state = state_of(request)
    time_range = time_range_of(request, "all")
    found = state.statistics.report(time_range, tasks=True)
    prediction = estimate(found, state.runtime.settings.threshold)
    return render(
        request,
        "estimate.html",
        title="Estimate",
        time_range=time_range,
        time_ranges=TIME_RANGES,
        estimate=prediction,
        charts=[_chart(prediction)],
        thresholds=_thresholds(request, prediction),
        tasks=_tasks(request, prediction),
    )


def _chart(prediction: Estimate) -> Chart:
    candidates = prediction.total.candidates
    return Chart(
        "thresholds",
        "Bytes by threshold",
        [human_size(each.threshold) for each in candidates],
        {
            "kept out of messages": [each.bytes for each in candidates],
            "stored": [each.stored_bytes for each in candidates],
        },
        unit="bytes",
        heading="Threshold",
    )


def _thresholds(request: Request, prediction: Estimate) -> Table[Candidate]:
    def mark(each: Candidate) -> str:
        best = prediction.total.best
        marks = {"set": each.threshold == prediction.threshold, "best": each == best}
        return ", ".join(text for text, holds in marks.items() if holds)

    out = "would be kept out of messages"
    columns: list[Column[Candidate]] = [
        Column(
            "threshold",
            "Threshold",
            lambda each: human_size(each.threshold),
            lambda each: each.threshold,
            wide=True,
        ),
        Column("mark", "Note", mark, wide=True),
        Column.figure("values", "Values", lambda each: each.values, human_number, out),
        Column.figure("bytes", "Bytes", lambda each: each.bytes, human_size, out),
        Column.figure(
            "stored", "Stored", lambda each: each.stored_bytes, human_size, "deduplicated"
        ),
        Column.figure(
            "trips",
            "Round trips",
            lambda each: each.round_trips,
            human_number,
            "upper bound",
        ),
        Column.figure(
            "saved",
            "CPU saved",
            lambda each: each.saved_seconds,
            human_time_saved,
            "by publishers and workers, estimated; negative means extra CPU time",
        ),
    ]
    return Table.of(
        request.query_params,
        columns,
        prediction.total.candidates,
        caption="Thresholds",
        identify=lambda each: f"{each.threshold:012}",
        sort="threshold",
        descending=False,
    )


def _tasks(request: Request, prediction: Estimate) -> Table[tuple[str, Choices]]:
    def best(item: tuple[str, Choices]) -> str:
        found = item[1].best
        if found is None:
            return "none saves"
        return human_size(found.threshold) if item[1].is_worth_changing else "unchanged"

    def saved(item: tuple[str, Choices]) -> float:
        return item[1].best.saved_seconds if item[1].best is not None else 0.0

    columns: list[Column[tuple[str, Choices]]] = [
        Column("name", "Task", lambda item: item[0] or OUTSIDE, lambda item: item[0], wide=True),
        Column.figure("values", "Values", lambda item: item[1].values, human_number),
        Column.figure("bytes", "Bytes", lambda item: item[1].bytes, human_size),
        Column(
            "best",
            "Best threshold",
            best,
            hint="unchanged: no other threshold saves enough to be worth a change",
        ),
        Column.figure("saved", "CPU saved", saved, human_time_saved),
    ]
    return Table.of(
        request.query_params,
        columns,
        [(task, choices) for task, choices in prediction.tasks.items() if choices.values],
        caption="Tasks",
        identify=lambda item: item[0],
        sort="saved",
        name="task",
    )


ROUTES = [Route("/estimate", _estimate, name="estimate")]
