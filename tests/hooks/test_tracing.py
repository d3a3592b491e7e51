"""OpenTelemetry traces show where time is spent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys
from celery import Celery
from celery.contrib.testing.worker import start_worker
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from offload import Offload

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
CeleryInstrumentor().instrument()

app = Celery("traced", broker="memory://", backend="cache+memory://")
app.conf.update(worker_hijack_root_logger=False, worker_enable_remote_control=False)
Offload(
    app,
    store=sys.argv[1],
    cache=sys.argv[3],
    cache_write="off",
    prefetch="off",
    retry={"max_retries": 0},
)

@app.task(name="take")
def take(rows):
    return len(rows)

with start_worker(app, pool="solo", perform_ping_check=False):
    with trace.get_tracer("test").start_as_current_span("caller"):
        result = take.delay(["row"] * 50_000)
    assert result.get(timeout=20) == 50_000
    for name in ("first", "second"):
        with trace.get_tracer("test").start_as_current_span(name):
            result = take.delay(["a longer row"] * 200_000)
        assert result.get(timeout=20) == 200_000
if len(sys.argv) > 2:
    app._offload._store = None
    app._offload._contents = None
    app._offload._settings = None
    app._offload.given["store"] = sys.argv[2]
    try:
        with trace.get_tracer("test").start_as_current_span("failing"):
            take.delay(["other"] * 50_000)
    except Exception as exc:
        print(type(exc).__name__, file=sys.stderr)

print(json.dumps([
    {
        "name": metric.name,
        "attributes": dict(point.attributes),
        "value": getattr(point, "value", getattr(point, "sum", None)),
        "traces": [exemplar.trace_id for exemplar in point.exemplars],
    }
    for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics
    if scope.scope.name == "offload"
    for metric in scope.metrics
    for point in metric.data.data_points
]))
print(json.dumps([
    {
        "name": span.name,
        "trace": span.context.trace_id,
        "id": span.context.span_id,
        "parent": span.parent and span.parent.span_id,
        "attributes": dict(span.attributes),
        "ok": span.status.is_ok,
    }
    for span in exporter.get_finished_spans()
]))
"""


@pytest.fixture(scope="module")
def exported(redis, tmp_path_factory):
    url = f"{redis.url}?prefix=traced-{os.getpid()}"
    done = subprocess.run(
        [
            *(sys.executable, "-c", SCRIPT, url, "redis://127.0.0.1:1/0"),
            str(tmp_path_factory.mktemp("traced") / "cache"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()[-2:]]


@pytest.fixture
def spans(exported):
    return exported[1]


def one(spans, name, trace=None):
    [found] = [span for span in spans if span["name"] == name and trace in (None, span["trace"])]
    return found


def test_a_publishers_spans_belong_to_the_callers_span(spans):
    """Each step of publishing is a child span of the caller's."""
    caller = one(spans, "caller")
    for step in ("serialize", "hash", "upload"):
        span = one(spans, f"offload.{step}", caller["trace"])
        assert span["parent"] == caller["id"], step
        attributes = span["attributes"]
        assert (attributes["offload.task"], attributes["offload.argument"]) == ("take", "rows")


def test_a_workers_spans_belong_to_the_trace_of_the_message(spans):
    """Celery's span of the task starts later; both spans are children of the publisher's."""
    caller = one(spans, "caller")
    run = one(spans, "run/take", caller["trace"])
    for step in ("fetch", "decode"):
        span = one(spans, f"offload.{step}", caller["trace"])
        assert span["parent"] == run["parent"]
        attributes = span["attributes"]
        assert (attributes["offload.task"], attributes["offload.argument"]) == ("take", "rows")


def values_of(spans, trace):
    """Return bytes, digest, and hit of each step in a trace."""
    return {
        span["name"].removeprefix("offload."): tuple(
            span["attributes"].get(f"offload.{name}") for name in ("bytes", "digest", "hit")
        )
        for span in spans
        if span["trace"] == trace and span["name"].startswith("offload.")
    }


def test_spans_describe_the_value(spans):
    """Spans have the value's bytes and digest; uploads and fetches also whether they hit."""
    found = values_of(spans, one(spans, "caller")["trace"])
    size, digest, _ = found["fetch"]
    assert size > 50_000
    assert digest
    assert found == {
        "serialize": (size, None, None),
        "hash": (size, digest, None),
        "upload": (size, digest, False),
        "fetch": (size, digest, False),
        "decode": (size, digest, None),
    }


def test_a_repeated_value_hits(spans):
    """The second time, the upload hits the store, and the fetch the node cache."""
    first = values_of(spans, one(spans, "first")["trace"])
    second = values_of(spans, one(spans, "second")["trace"])
    size, digest, _ = first["fetch"]
    assert (first["upload"], first["fetch"]) == ((size, digest, False), (size, digest, False))
    assert (second["upload"], second["fetch"]) == ((size, digest, True), (size, digest, True))


def test_metrics_join_traces(exported):
    """Publisher and worker record what they count, with exemplars of their spans' traces."""
    metrics, spans = exported
    traces = {span["trace"] for span in spans}
    found = {}
    for metric in metrics:
        attributes = metric["attributes"]
        rest = [value for key, value in attributes.items() if key != "offload.task"]
        found[(metric["name"], *rest)] = metric
        assert attributes.keys() <= {"offload.task", "offload.step", "offload.kind"}
        assert set(metric["traces"]) <= traces
    assert found["offload.offloaded.values",]["value"] == 3
    assert found["offload.deduplicated.values",]["value"] == 1
    assert found["offload.cache.hits",]["value"] == 1
    assert found["offload.errors", "unavailable"]["value"] == 1
    for step in ("serialize", "hash", "upload", "fetch", "decode"):
        assert found["offload.step.duration", step]["traces"], step


def test_a_failed_step_is_recorded(spans):
    """A failed step's span has the error."""
    failed = [span["name"] for span in spans if not span["ok"]]
    assert "offload.upload" in failed


def test_a_process_without_it_pays_nothing():
    """offload doesn't import OpenTelemetry."""
    code = (
        "import sys, offload.metrics.otel as t\n"
        "with t.received({}): assert t.span('fetch', 'a', 'b') is None\n"
        "assert 'opentelemetry' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
    )
