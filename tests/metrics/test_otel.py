"""OpenTelemetry metrics say what the counters count, within the current span."""

from __future__ import annotations

import threading

import pytest

from offload.errors import BlobMissing
from offload.metrics import counters as module
from offload.metrics import otel
from offload.metrics.counters import Counters, about_now

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider


class Exported:
    def __init__(self, reader):
        self._reader = reader

    def metrics(self):
        """Return the metrics by name."""
        data = self._reader.get_metrics_data()
        scopes = [] if data is None else data.resource_metrics[0].scope_metrics
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, name):
        """Return value (of a histogram: sum) and attributes of each series."""
        return [
            (getattr(point, "value", getattr(point, "sum", None)), dict(point.attributes))
            for point in self.metrics()[name].data.data_points
        ]


@pytest.fixture
def exported(monkeypatch):
    """Export what this thread counts, as in a process that has set up OpenTelemetry."""
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("offload")
    monkeypatch.setattr("opentelemetry.metrics.get_meter", lambda _: meter)
    export, thread = module._export, threading.get_ident()

    def export_own(*event):
        if threading.get_ident() == thread:  # others may count for other tests
            export(*event)

    monkeypatch.setattr(module, "_export", export_own)
    monkeypatch.setattr(otel, "active", True)
    module._instruments.cache_clear()
    yield Exported(reader)
    module._instruments.cache_clear()


def count_everything(counters):
    with counters.about("job", "frame"):
        counters.add(values_seen=3, memo_milliseconds_saved=1500)
        counters.offloaded(5000, 5000, whole=True)
        counters.sized(70, 0)
        counters.took("fetch", 0.25)
        counters.failed(BlobMissing("gone"))
    counters.add(store_retries=1)
    counters.of_store("redis://user:secret@host/0", blobs_uploaded=2)
    counters.took("upload", 0.5, store="s3://bucket/prefix")


def test_each_event_is_recorded(exported):
    """Amounts are those of the counters; attributes are task, step, kind, and store scheme only."""
    count_everything(Counters())
    job = {"offload.task": "job"}
    assert {name: exported.points(name) for name in exported.metrics()} == {
        "offload.seen.values": [(3, job)],
        "offload.memo.saved": [(1.5, job)],
        "offload.offloaded.values": [(1, job)],
        "offload.offloaded.bytes": [(5000, job)],
        "offload.deduplicated.values": [(1, job)],
        "offload.deduplicated.bytes": [(5000, job)],
        "offload.value.size": [(5070, job)],
        "offload.step.duration": [(0.25, {**job, "offload.step": "fetch"})],
        "offload.errors": [(1, {**job, "offload.kind": "missing"})],
        "offload.store.retries": [(1, {})],
        "offload.store.uploaded.blobs": [(2, {"offload.store": "redis"})],
        "offload.store.step.duration": [(0.5, {"offload.store": "s3", "offload.step": "upload"})],
    }


def test_instruments_have_units_and_buckets(exported):
    """Durations are seconds, sizes bytes; histograms have the buckets of the exporter."""
    count_everything(Counters())
    metrics = exported.metrics()
    units = {name: metric.unit for name, metric in metrics.items()}
    assert units["offload.step.duration"] == units["offload.memo.saved"] == "s"
    assert units["offload.value.size"] == units["offload.offloaded.bytes"] == "By"
    assert units["offload.offloaded.values"] == "{value}"
    [sizes] = metrics["offload.value.size"].data.data_points
    assert sizes.explicit_bounds == tuple(bound - 1 for bound in module.SIZES)
    [times] = metrics["offload.step.duration"].data.data_points
    assert times.explicit_bounds == module.BOUNDS


def test_exemplars_name_the_trace(exported):
    """A step's duration is recorded within its span, and a counter within the caller's."""
    counters = Counters()
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("caller") as caller:
        with counters.timed("fetch"):
            pass
        counters.add(cache_misses=1)
    trace = caller.get_span_context().trace_id
    metrics = exported.metrics()
    for name in ("offload.step.duration", "offload.cache.misses"):
        [point] = metrics[name].data.data_points
        assert [exemplar.trace_id for exemplar in point.exemplars] == [trace], name


def test_task_names_are_bounded(exported, monkeypatch):
    """Tasks after the first 200 share an attribute, however many a process publishes."""
    monkeypatch.setattr(otel, "_TASKS", 2)
    counters = Counters()
    for task in ("a", "b", "c", "d", "a"):
        with counters.about(task):
            counters.add(values_seen=1)
    points = exported.points("offload.seen.values")
    found = {where["offload.task"]: value for value, where in points}
    assert found == {"a": 2, "b": 1, "(other)": 2}


def test_nothing_is_recorded_unless_tracing_is_set_up(exported, monkeypatch):
    """The switch is that of spans: without a tracer provider, events are only counted."""
    monkeypatch.setattr(otel, "active", False)
    counters = Counters()
    count_everything(counters)
    assert exported.metrics() == {}
    assert counters.snapshot()["values_seen"] == 3
    assert about_now.get() == ("", "")
