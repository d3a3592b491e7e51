"""OpenTelemetry spans, if the process uses it: https://opentelemetry.io/docs/specs/otel/trace/

A span is a child of the current one: the publisher's. On a worker, where references are resolved
before Celery's own span starts, it is a child of the span in the message.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

_NAME = "offload"
_CHECK_INTERVAL = 0.1  # seconds between checks whether OpenTelemetry was set up
_NOTHING = nullcontext()


def span(step: str, task: str, argument: str) -> AbstractContextManager[Any] | None:
    """Return a span ``offload.<step>`` with attributes ``offload.task`` and ``offload.argument``.

    It records an error that leaves it. Returns None in a process that has not set up
    OpenTelemetry, and for a tenth of a second after it did.
    """
    if not is_set_up():
        return None
    from opentelemetry import trace

    labels = {"offload.task": task, "offload.argument": argument}
    given: AbstractContextManager[Any] = trace.get_tracer(_NAME).start_as_current_span(
        f"{_NAME}.{step}", attributes={name: value for name, value in labels.items() if value}
    )
    return given


def note_value(
    active: Any, size: int | None = None, digest: str | None = None, *, hit: bool | None = None
) -> None:
    """Set the attributes of a value on a span that has started; None leaves one out.

    Args:
        size: ``offload.bytes``, the serialized bytes of the value, or of several values.
        digest: ``offload.digest``, of one value.
        hit: ``offload.hit``, whether the node cache had it (fetch), or the store (upload).
    """
    noted = {"bytes": size, "digest": digest, "hit": hit}
    active.set_attributes(
        {f"{_NAME}.{name}": value for name, value in noted.items() if value is not None}
    )


def note_hit(task: str, argument: str, size: int, digest: str) -> None:
    """Record that the node cache had a value, as a span ``offload.fetch`` without duration."""
    found = span("fetch", task, argument)
    if found is not None:
        with found as active:
            note_value(active, size, digest, hit=True)


def received(headers: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Make spans in this context part of the trace in a message's headers, if there is one."""
    return _received(headers) if is_set_up() else _NOTHING


active = False
"""The last result of `is_set_up`, for code that runs too often to call it."""
_next_check = 0.0


def is_set_up() -> bool:
    """Return whether the process has set up OpenTelemetry.

    Checks at most ten times a second: a check takes longer than counting does.
    """
    global active, _next_check
    if not active and (now := time.monotonic()) >= _next_check:
        _next_check = now + _CHECK_INTERVAL
        # redis-py imports OpenTelemetry if it is installed
        trace = sys.modules.get("opentelemetry.trace")
        active = trace is not None and not isinstance(
            trace.get_tracer_provider(), trace.ProxyTracerProvider
        )
    return active


@contextmanager
def _received(headers: Mapping[str, Any]) -> Iterator[None]:
    from opentelemetry import context, propagate, trace

    if trace.get_current_span().get_span_context().is_valid:  # of an eager call
        yield
        return
    texts = {name: value for name, value in headers.items() if isinstance(value, str)}
    token = context.attach(propagate.extract(texts))
    try:
        yield
    finally:
        context.detach(token)
