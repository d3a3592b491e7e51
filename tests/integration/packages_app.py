"""App that uses packages around Celery, with or without offload."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from celery import Celery
from pydantic import BaseModel

from offload import Offload
from tests.support.django_database import use_database


class Order(BaseModel):
    customer: str
    items: list[str]


class Summary(BaseModel):
    customer: str
    items: list[str]
    count: int


def create(config: dict[str, Any]) -> Celery:
    use_database(config["database"])
    app = Celery("packages", broker=config["url"], backend="django-db", set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        task_default_queue=config["queue"],
        result_extended=True,
        task_send_sent_event=True,
        beat_max_loop_interval=1,
        redbeat_redis_url=config["url"],
        redbeat_key_prefix=f"redbeat-{config['queue']}:",
    )
    if config["offload"]:
        Offload(app, store=config["url"], cache="off")

    def length(rows: Any, box: str | None = None) -> int:
        if box is not None:
            Path(box).write_text(f"{type(rows).__name__} of {len(rows)}")
        return len(rows)

    def order(order: Order) -> Summary:
        return Summary(**order.model_dump(), count=len(order.items))

    order.__annotations__ = {"order": Order, "return": Summary}  # Celery 5.5 resolves no strings

    def progress(self: Any, rows: Any) -> Any:
        from celery_progress.backend import ProgressRecorder

        ProgressRecorder(self).set_progress(1, 2)
        return rows[::-1]

    app.task(name="length", shared=False)(length)
    app.task(name="order", pydantic=True, shared=False)(order)
    app.task(name="progress", bind=True, shared=False)(progress)
    app.finalize()
    return app


def record_spans(path: str) -> None:
    """Make ddtrace write each span's name, resource, and error to a file, and send nothing."""
    from ddtrace import patch
    from ddtrace.trace import TraceFilter, tracer

    class ToFile(TraceFilter):
        def process_trace(self, trace: Any) -> Any:
            with Path(path).open("a") as lines:
                lines.writelines(
                    json.dumps([span.name, span.resource, span.error]) + "\n" for span in trace
                )

    tracer.configure(trace_processors=[ToFile()])
    patch(celery=True)


def record_opentelemetry(path: str) -> None:
    """Make OpenTelemetry write the spans of its instrumentation, and offload's, to a file."""
    from opentelemetry import trace
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    class ToFile(SpanExporter):
        def export(self, spans: Any) -> Any:
            with Path(path).open("a") as lines:
                lines.writelines(f"{span.to_json(indent=None)}\n" for span in spans)
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ToFile()))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()


if "OFFLOAD_TEST_APP" in os.environ:
    found = json.loads(os.environ["OFFLOAD_TEST_APP"])
    if spans := found.get("spans"):
        record_spans(spans)
    if traces := found.get("traces"):
        record_opentelemetry(traces)
    app = create(found)
    app.set_current()
    app.set_default()
