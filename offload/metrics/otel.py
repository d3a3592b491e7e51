"""OpenTelemetry spans and metrics, if the process uses it: https://opentelemetry.io/docs/specs/otel/

A span is a child of the current one: the publisher's. On a worker, where references are resolved
before Celery's own span starts, it is a child of the span in the message.

Events are recorded when they are counted, within the current span, so that a metric's exemplars
link to traces. There are few attributes: task, step, kind of error, and scheme of a store's URL.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.metrics import Counter, Histogram, Meter

# -- spans

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


# -- metrics

_TASKS = 200  # tasks that get their own attribute, as in the Prometheus exporter
_OTHER = "(other)"
_ERRORS = "errors_"
_MILLISECONDS = "memo_milliseconds_saved"
_UNITS = {"bytes": "By", "values": "{value}", "blobs": "{blob}"}
_OF_ONE_STORE = 3  # labels


def name_of(name: str) -> str:
    """Return the name of a counter's instrument: ``offload.stored.bytes`` for ``bytes_stored``."""
    if name == _MILLISECONDS:
        return "offload.memo.saved"
    unit, _, rest = name.partition("_")
    return "offload." + (f"{rest}_{unit}" if unit in _UNITS else name).replace("_", ".")


class Instruments:
    """The OpenTelemetry instruments of a process.

    Args:
        counters: descriptions of counters by name.
        of_store: descriptions of counters kept per store, by name.
        store_prefix: prefix of the names in *of_store* in events.
        times, sizes: bounds of histogram buckets, in seconds and in bytes.
    """

    def __init__(
        self,
        meter: Meter,
        counters: Mapping[str, str],
        of_store: Mapping[str, str],
        store_prefix: str,
        *,
        times: Sequence[float],
        sizes: Sequence[float],
    ) -> None:
        errors = meter.create_counter(
            "offload.errors", description="values that could not be stored or fetched"
        )
        self._counters: dict[str, Counter] = {}
        for name, text in counters.items():
            of_kind = name.startswith(_ERRORS)
            self._counters[name] = errors if of_kind else _counter(meter, name_of(name), text)
        for name, text in of_store.items():
            full = name_of(name).replace("offload", "offload.store", 1)
            self._counters[store_prefix + name] = _counter(meter, full, f"by store: {text}")
        self._durations: dict[bool, Histogram] = {
            of_store: meter.create_histogram(
                f"offload.{'store.' * of_store}step.duration",
                "s",
                "duration of a step for one value",
                explicit_bucket_boundaries_advisory=times,
            )
            for of_store in (False, True)
        }
        self._sizes = meter.create_histogram(
            "offload.value.size",
            "By",
            "serialized bytes of a value sent by reference, or observed (mode observe)",
            explicit_bucket_boundaries_advisory=sizes,
        )
        self._tasks: set[str] = set()

    def count(self, labels: tuple[str, ...], amounts: Iterable[tuple[str, int]]) -> None:
        """Increase counters. *labels* are (task, argument), or ("", "", store's URL)."""
        attributes = self._attributes(labels)
        for name, amount in amounts:
            if name.startswith(_ERRORS):
                kind = {"offload.kind": name.removeprefix(_ERRORS)}
                self._counters[name].add(amount, {**attributes, **kind})
            elif amount:
                value = amount / 1000 if name == _MILLISECONDS else amount
                self._counters[name].add(value, attributes)

    def size(self, labels: tuple[str, ...], size: int) -> None:
        """Record the size of a value that was sent by reference or observed."""
        self._sizes.record(size, self._attributes(labels))

    def time(self, labels: tuple[str, ...], step: str, seconds: float) -> None:
        """Record the duration of a step, or the time that one of several stores took for it."""
        attributes = {**self._attributes(labels), "offload.step": step}
        self._durations[len(labels) == _OF_ONE_STORE].record(seconds, attributes)

    def _attributes(self, labels: tuple[str, ...]) -> dict[str, str]:
        if len(labels) == _OF_ONE_STORE:
            return {"offload.store": labels[2].partition(":")[0]}
        task = labels[0]
        if not task:
            return {}
        if task not in self._tasks:
            if len(self._tasks) >= _TASKS:
                task = _OTHER
            else:
                self._tasks.add(task)
        return {"offload.task": task}


def _counter(meter: Meter, name: str, text: str) -> Counter:
    unit = "s" if name == "offload.memo.saved" else _UNITS.get(name.rpartition(".")[2], "")
    return meter.create_counter(name, unit, text)
