"""Report the counters of all processes: in total; by task, argument, and store; and over time."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf

from offload.errors import ConfigurationError
from offload.metrics.counters import (
    BOUNDS,
    OBJECT_PREFIX,
    OF_STORE_PREFIX,
    OTHER,
    SIZES,
    WORKER_PREFIX,
    size_names,
)
from offload.stores.capabilities import tiers_of
from offload.stores.protocols import Store
from offload.stores.sums import KEPT, LABEL, SPANS, Span, Sums
from offload.text import human_percent, human_ratio, human_size, human_time

OUTSIDE = "(outside tasks)"
"""Shown as the task of values that no task sent or read, such as those of `Offload.put`.
The counters and JSON have an empty name instead."""
REF_SIZE = 200
"""Approximate bytes of a reference in a message."""

_USES = {
    "catalog_loads": "loads",
    "cache_hits": "hits",
    "catalog_late": "late",
    "catalog_refs": "refs",
}


@dataclass(frozen=True)
class Figures:
    """Counters of an app, a task, or an argument, by name; 0 if not counted."""

    counts: Mapping[str, int]

    def __getitem__(self, name: str) -> int:
        return self.counts.get(name, 0)

    @property
    def deduplication(self) -> float | None:
        """Bytes sent by reference per byte uploaded; None if nothing was uploaded."""
        if not self["bytes_offloaded"]:
            return None
        uploaded = self["bytes_uploaded"]
        return self["bytes_offloaded"] / uploaded if uploaded else inf

    @property
    def kept_out(self) -> float | None:
        """Share (0 to 1) of the bytes of values sent by reference that messages and results don't
        contain; None if there were none.
        """
        size = self["bytes_offloaded"]
        return max(1 - self["values_offloaded"] * REF_SIZE / size, 0.0) if size else None

    @property
    def stored_less(self) -> float | None:
        """Share (0 to 1) of the bytes of values sent by reference that deduplication and
        compression kept out of the store; None if there were none.
        """
        size = self["bytes_offloaded"]
        return max(1 - self["bytes_stored"] / size, 0.0) if size else None

    @property
    def hit_ratio(self) -> float | None:
        """Share (0 to 1) of node cache lookups that were hits; None if there were none."""
        asked = self["cache_hits"] + self["cache_misses"]
        return self["cache_hits"] / asked if asked else None

    @property
    def uses_memo(self) -> bool:
        """Whether any task or function with ``memo`` was called."""
        return any(name.startswith("memo_") and n for name, n in self.counts.items())

    @property
    def memo_lookups(self) -> int:
        """Number of calls for which a remembered result was looked up."""
        return self["memo_hits"] + self["memo_misses"]

    @property
    def memo_hit_ratio(self) -> float | None:
        """Share (0 to 1) of `memo_lookups` that were hits; None if there were none."""
        return self["memo_hits"] / self.memo_lookups if self.memo_lookups else None

    @property
    def memo_seconds_saved(self) -> float:
        """Seconds that computations took whose remembered results were returned."""
        return self["memo_milliseconds_saved"] / 1e3

    @property
    def uses_catalog(self) -> bool:
        """Whether any catalog object was saved, loaded, or removed."""
        return any(name.startswith("catalog_") and n for name, n in self.counts.items())

    @property
    def errors(self) -> dict[str, int]:
        """Number of errors by kind, without zeros."""
        found = {
            name.removeprefix("errors_"): n
            for name, n in self.counts.items()
            if name.startswith("errors_")
        }
        return {kind: number for kind, number in sorted(found.items()) if number}

    def times(self, step: str) -> list[int]:
        """Return how often *step* took at most each of `BOUNDS` seconds, and how often in total."""
        numbers = [self[f"{step}_seconds_{number}"] for number in range(len(BOUNDS) + 1)]
        return list(accumulate(numbers))

    def seconds(self, step: str) -> float:
        """Return the total time of *step*, in seconds."""
        return self[f"{step}_microseconds"] / 1e6

    def sizes(self) -> tuple[list[int], int]:
        """Return the numbers of values below each of `SIZES` and in total; and the sum of bytes."""
        classes = [size_names(at_least) for at_least in (0, *SIZES)]
        values = list(accumulate(self[values] for values, _, _ in classes))
        return values, sum(self[size] for _, size, _ in classes)

    def quantile(self, step: str, part: float) -> float | None:
        """Return the quantile *part* (0 to 1) of a step's times, in seconds.

        It is interpolated within its bucket, and rounded to two digits; infinite if it is above
        the last bound; None if there were no times.
        """
        times = self.times(step)
        if not times[-1]:
            return None
        wanted = part * times[-1]
        place = bisect_left(times, wanted)
        if place == len(BOUNDS):
            return inf
        low, below = (BOUNDS[place - 1], times[place - 1]) if place else (0.0, 0)
        inside = (wanted - below) / (times[place] - below)
        return float(f"{low + inside * (BOUNDS[place] - low):.2g}")

    @classmethod
    def sum(cls, parts: Iterable[Mapping[str, int]]) -> Figures:
        """Return the sum of several sets of counters."""
        rest = iter(parts)
        counts = dict(next(rest, {}))
        for part in rest:
            for name, amount in part.items():
                counts[name] = counts.get(name, 0) + amount
        return cls(counts)


@dataclass(frozen=True)
class Report:
    """The counters of all processes.

    Attributes:
        start: when counting started, in seconds since 1970; None for all time.
        total: counters in total.
        tasks: counters by task; "" stands for events without a task. Empty if only totals are kept.
        arguments: counters by task and argument; only for all time.
        stores: counters by URL, if there are several stores; not by the minute. See `by_store`.
        workers: counters in `OF_WORKER` by node name, summed over each worker's processes; neither
            by the minute nor for all time.
    """

    start: float | None
    total: Figures
    tasks: Mapping[str, Figures]
    arguments: Mapping[tuple[str, str], Figures]
    stores: Mapping[str, Figures] = field(default_factory=dict)
    workers: Mapping[str, Figures] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        """Show savings and errors in a notebook, in total and by task."""
        from offload.text import facts, table

        total = self.total
        since = "all time" if self.start is None else f"since {human_time(self.start)}"
        values = {
            "values": f"{total['values_seen']:,} inspected, "
            f"{total['values_offloaded']:,} by reference",
            "kept out of messages": human_size(total["bytes_offloaded"]),
            "uploaded": human_size(total["bytes_uploaded"]),
            "deduplication": human_ratio(total.deduplication),
            "node cache hits": human_percent(total.hit_ratio),
            "errors": ", ".join(f"{n:,} {kind}" for kind, n in total.errors.items()) or "none",
        }
        tasks = sorted(self.tasks.items(), key=lambda task: -task[1]["bytes_offloaded"])
        rows = (
            (
                name or OUTSIDE,
                f"{each['values_offloaded']:,}",
                human_size(each["bytes_offloaded"]),
                human_size(each["bytes_uploaded"]),
                f"{sum(each.errors.values()):,}",
            )
            for name, each in tasks
        )
        columns = ["task", "by reference", "bytes", "uploaded", "errors"]
        every = table("by task", columns, rows, len(tasks)) if tasks else ""
        return facts(f"offload, {since}", values) + every


def report(
    sums: Sums,
    since: float | None = None,
    *,
    tasks: bool = False,
    now: Callable[[], float] = time.time,
) -> Report:
    """Return the counters of the last *since* seconds, or of all time.

    Minutes, hours, or days that end within that time count in full.

    Args:
        since: seconds; None for all time.
        tasks: also return counts by task, which rules out counting by the minute.
        now: returns seconds since 1970.

    Raises ConfigurationError if *since* exceeds the history that is kept, and StoreUnavailable.
    """
    if since is None:
        return _report(None, [sums.total()])
    start = now() - since
    span = _span(since, tasks=tasks)
    series = sums.series(span, since)
    return _report(start, (c for at, c in series.items() if at + SPANS[span] > start))


def timeline(sums: Sums, span: Span, since: float | None = None) -> dict[int, Figures]:
    """Return the counters of minutes, hours, or days by their start, in seconds since 1970.

    Returns all that are kept, or those that end within the last *since* seconds. Raises
    StoreUnavailable.
    """
    return {
        start: _report(None, [counts]).total
        for start, counts in sorted(sums.series(span, since).items())
    }


@dataclass
class Usage:
    """How a catalog object was used in the last 90 days.

    Attributes:
        loads: how often it was loaded.
        hits: how many loads were read from a copy on the machine.
        late: how often it was looked up for a late argument of a task.
        refs: how many references to it were created for tasks.
        last: the hour of its last use, or the day if it was over three days ago: its start in
            seconds since 1970; None if it wasn't used.
    """

    loads: int = 0
    hits: int = 0
    late: int = 0
    refs: int = 0
    last: float | None = None

    @property
    def uses(self) -> int:
        """How often it was loaded, looked up, or referred to."""
        return self.loads + self.late + self.refs


def usage(sums: Sums) -> dict[tuple[str, str], Usage]:
    """Return how each object of the catalog was used, by bucket and name.

    Objects beyond the 10,000 that are counted per day are missing. Raises StoreUnavailable.
    """
    found: dict[tuple[str, str], Usage] = {}
    spans: tuple[Span, Span] = ("day", "hour")
    for span in spans:
        for start, counts in sums.series(span).items():
            for text, amount in counts.items():
                name, _, labels = text.partition(LABEL)
                bucket, slash, object_ = labels.lstrip(LABEL).partition("/")
                name = name.removeprefix(OF_STORE_PREFIX)
                if not (bucket.startswith(OBJECT_PREFIX) and slash and name in _USES):
                    continue
                key = bucket.removeprefix(OBJECT_PREFIX), object_
                used = found.setdefault(key, Usage())
                if name != "cache_hits":
                    used.last = max(used.last or start, start)
                if span == "day":
                    attribute = _USES[name]
                    setattr(used, attribute, getattr(used, attribute) + amount)
    return found


def _span(since: float, *, tasks: bool) -> Span:
    for span in SPANS:
        if since <= KEPT[span] and not (tasks and span == "minute"):
            return span
    days = KEPT["day"] // SPANS["day"]
    raise ConfigurationError(f"statistics over time are kept for {days} days")


def _report(start: float | None, sums: Iterable[Mapping[str, int]]) -> Report:
    labelled: dict[str, dict[str, int]] = defaultdict(dict)  # thousands of counters, few labels
    for counted in sums:
        for text, amount in counted.items():
            name, _, labels = text.partition(LABEL)
            counts = labelled[labels]
            counts[name] = counts.get(name, 0) + amount
    tasks: dict[str, list[dict[str, int]]] = defaultdict(list)
    arguments: dict[tuple[str, str], list[dict[str, int]]] = defaultdict(list)
    stores: dict[str, Figures] = {}
    workers: dict[str, Figures] = {}
    for labels, counts in labelled.items():
        task, argument, store = (*labels.split(LABEL), "", "")[:3]
        if store.startswith(OBJECT_PREFIX):  # see `usage`
            continue
        if store and not task:
            group = workers if store.startswith(WORKER_PREFIX) else stores
            group[store.removeprefix(WORKER_PREFIX)] = _of_store(counts)
            continue
        if task in ("", OTHER):
            counts = _of_all(counts)  # noqa: PLW2901 (a subset)
        tasks[task].append(counts)
        if argument:
            arguments[task, argument].append(counts)
    by_task = {task: Figures.sum(parts) for task, parts in tasks.items()}
    return Report(
        start,
        Figures.sum(figures.counts for figures in by_task.values()),
        by_task if any(labelled) else {},
        {key: Figures.sum(parts) for key, parts in arguments.items()},
        stores,
        workers,
    )


def _of_store(counts: Mapping[str, int]) -> Figures:
    return Figures({name.removeprefix(OF_STORE_PREFIX): n for name, n in counts.items()})


def _of_all(counts: Mapping[str, int]) -> dict[str, int]:
    """Drop the counts of stores, which have no label in counts by the minute."""
    return {name: n for name, n in counts.items() if not name.startswith(OF_STORE_PREFIX)}


def by_store(found: Report, store: Store) -> dict[str, Figures]:
    """Return the figures of *store*, or of each of its tiers, by URL.

    A single store has all counters, with ``bytes_fetched`` in bytes of values. Tiers have those in
    `offload.metrics.counters.OF_STORE`, and the times of uploads and fetches. Stores that are no
    longer tiers come last.
    """
    tiers = tiers_of(store)
    if len(tiers) == 1:
        total = found.total
        failed = total["store_retries"] + total["errors_unavailable"]
        return {store.url: Figures({**total.counts, "calls_failed": failed})}
    figures = {tier.url: found.stores.get(tier.url, Figures({})) for tier in tiers}
    gone = {url: found.stores[url] for url in sorted(found.stores.keys() - figures.keys())}
    return {**figures, **gone}
