"""Spans of OpenTelemetry, where the process has it: https://opentelemetry.io/docs/specs/otel/trace/

A span that begins here is a child of the current one: of whoever publishes, or on a worker, where
references are resolved before Celery's own span begins, of the span that the message came from.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

__all__ = ("is_set_up", "received", "span")

_NAME = "offload"
_LOOK = 0.1  # seconds until a process that sets OpenTelemetry up is seen to
_NOTHING = nullcontext()


def span(step: str, task: str, argument: str) -> AbstractContextManager[Any] | None:
    """Return a span ``offload.<step>`` with attributes ``offload.task`` and ``offload.argument``.

    It records an error that leaves it. None in a process that has not set OpenTelemetry up, and
    for a tenth of a second after it did.
    """
    if not is_set_up():
        return None
    from opentelemetry import trace

    labels = {"offload.task": task, "offload.argument": argument}
    given: AbstractContextManager[Any] = trace.get_tracer(_NAME).start_as_current_span(
        f"{_NAME}.{step}", attributes={name: value for name, value in labels.items() if value}
    )
    return given


def received(headers: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Within this, spans belong to the trace that a message came with, if it came with one."""
    return _received(headers) if is_set_up() else _NOTHING


_set_up = False
_look_again = 0.0


def is_set_up() -> bool:
    """Return whether spans go anywhere.

    It is looked at ten times a second at most: looking takes longer than counting does.
    """
    global _set_up, _look_again
    if not _set_up and (now := time.monotonic()) >= _look_again:
        _look_again = now + _LOOK
        # redis-py imports OpenTelemetry wherever it is installed
        trace = sys.modules.get("opentelemetry.trace")
        _set_up = trace is not None and not isinstance(
            trace.get_tracer_provider(), trace.ProxyTracerProvider
        )
    return _set_up


@contextmanager
def _received(headers: Mapping[str, Any]) -> Iterator[None]:
    from opentelemetry import context, propagate, trace

    if trace.get_current_span().get_span_context().is_valid:  # of who calls the task eagerly
        yield
        return
    texts = {name: value for name, value in headers.items() if isinstance(value, str)}
    token = context.attach(propagate.extract(texts))
    try:
        yield
    finally:
        context.detach(token)
