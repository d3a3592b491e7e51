"""OpenTelemetry metrics: https://opentelemetry.io/docs/specs/otel/metrics/

Events are recorded when they are counted, within the current span, so that a metric's exemplars
name traces. Attributes are few: task, step, kind of error, and the scheme of a store's URL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.metrics import Counter, Histogram, Meter

_TASKS = 200  # tasks with an attribute of their own, as in the Prometheus exporter
_OTHER = "(other)"
_ERRORS = "errors_"
_MILLISECONDS = "memo_milliseconds_saved"
_UNITS = {"bytes": "By", "values": "{value}", "blobs": "{blob}"}
_OF_ONE_STORE = 3  # labels


def name_of(name: str) -> str:
    """Return the instrument for a counter: ``bytes_stored`` is ``offload.stored.bytes``."""
    if name == _MILLISECONDS:
        return "offload.memo.saved"
    unit, _, rest = name.partition("_")
    return "offload." + (f"{rest}_{unit}" if unit in _UNITS else name).replace("_", ".")


class Instruments:
    """The instruments of a process.

    Args:
        counters: descriptions of counters by name.
        of_store: those of counters that exist for each of several stores.
        store_prefix: prefix of the latter.
        times, sizes: bounds of the buckets for seconds and for bytes.
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
        """Increase counters. *labels* are a task and an argument, or "", "", and a store's URL."""
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
        """Record the duration of a step, or of the part that one of several stores had in it."""
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
