"""Reading tallies: all of an app, by task, by argument, over time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from offload.counters import OF_STORE_PREFIX, OTHER
from offload.errors import ConfigurationError
from offload.stats.figures import Figures
from offload.stores.protocols import Store
from offload.stores.tallies import KEPT, LABEL, SPANS, Span, Tallied, Tallies

__all__ = ("Report", "report", "tallies_of", "timeline")


@dataclass(frozen=True)
class Report:
    """What was counted.

    Attributes:
        begin: since when, in seconds since 1970; None: since anything was.
        total: of all.
        tasks: by task; "" is what is about none. Empty where only totals are kept.
        arguments: by task and argument; only of all time.
        stores: by URL, where there are several; not in minutes. See `offload.stats.stores`.
    """

    begin: float | None
    total: Figures
    tasks: Mapping[str, Figures]
    arguments: Mapping[tuple[str, str], Figures]
    stores: Mapping[str, Figures] = field(default_factory=dict)


def tallies_of(store: Store) -> Tallies:
    """Return the tallies of *store*; raises ConfigurationError if it keeps none."""
    if isinstance(store, Tallied):
        return store.tallies
    raise ConfigurationError(
        f"{store.url} keeps no statistics: it has no `tallies` (offload.stores.tallies)",
        store=store.url,
    )


def report(
    tallies: Tallies,
    since: float | None = None,
    *,
    tasks: bool = False,
    now: Callable[[], float] = time.time,
) -> Report:
    """Return what was counted, in the last *since* seconds or in all.

    Minutes, hours or days count whole if they end in that time. *tasks* wants them apart, which
    minutes have not.
    """
    if since is None:
        return _report(None, [tallies.total()])
    begin = now() - since
    span = _span(since, tasks=tasks)
    series = tallies.series(span, since)
    return _report(begin, (c for at, c in series.items() if at + SPANS[span] > begin))


def timeline(tallies: Tallies, span: Span, since: float | None = None) -> dict[int, Figures]:
    """Return the figures of minutes, hours or days, by when they began: all that are kept, or
    those that end in the last *since* seconds.
    """
    return {
        begin: _report(None, [counts]).total
        for begin, counts in sorted(tallies.series(span, since).items())
    }


def _span(since: float, *, tasks: bool) -> Span:
    for span in SPANS:
        if since <= KEPT[span] and not (tasks and span == "minute"):
            return span
    days = KEPT["day"] // SPANS["day"]
    raise ConfigurationError(f"statistics over time are kept for {days} days")


def _report(begin: float | None, accounts: Iterable[Mapping[str, int]]) -> Report:
    labelled: dict[str, dict[str, int]] = defaultdict(dict)  # thousands of texts, of few labels
    for account in accounts:
        for text, amount in account.items():
            name, _, labels = text.partition(LABEL)
            counts = labelled[labels]
            counts[name] = counts.get(name, 0) + amount
    tasks: dict[str, list[dict[str, int]]] = defaultdict(list)
    arguments: dict[tuple[str, str], list[dict[str, int]]] = defaultdict(list)
    stores: dict[str, Figures] = {}
    for labels, counts in labelled.items():
        task, argument, store = (*labels.split(LABEL), "", "")[:3]
        if store and not task:
            stores[store] = _of_store(counts)
            continue
        if task in ("", OTHER):
            counts = _of_all(counts)  # noqa: PLW2901 (less of it)
        tasks[task].append(counts)
        if argument:
            arguments[task, argument].append(counts)
    by_task = {task: Figures.sum(parts) for task, parts in tasks.items()}
    return Report(
        begin,
        Figures.sum(figures.counts for figures in by_task.values()),
        by_task if any(labelled) else {},
        {key: Figures.sum(parts) for key, parts in arguments.items()},
        stores,
    )


def _of_store(counts: Mapping[str, int]) -> Figures:
    return Figures({name.removeprefix(OF_STORE_PREFIX): n for name, n in counts.items()})


def _of_all(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts without those of stores, which lose their label in minutes."""
    return {name: n for name, n in counts.items() if not name.startswith(OF_STORE_PREFIX)}
