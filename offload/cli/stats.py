"""``celery offload stats`` and ``estimate``: report savings and errors, and predict savings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import click

from offload.catalog.names import DEFAULT
from offload.cli.options import DURATION, as_json, runtime_of
from offload.cli.output import Column, print_json, print_labelled, print_rows
from offload.errors import StoreUnavailable
from offload.hooks.runtime import Runtime
from offload.inspect.catalog import describe_usage, usage_of
from offload.metrics.counters import BOUNDS, STEPS
from offload.metrics.estimate import Candidate, Estimate
from offload.metrics.estimate import estimate as estimate_of
from offload.metrics.latest import error_log_of
from offload.metrics.report import OUTSIDE, Figures, Report, Usage, by_store, report
from offload.metrics.storage import sums_of
from offload.text import (
    human_count,
    human_latency,
    human_percent,
    human_ratio,
    human_size,
    human_time,
    human_time_saved,
    printable,
)

_COLUMNS = [
    Column(name, number=True)
    for name in (
        "VALUES",
        "BY REFERENCE",
        "BYTES",
        "UPLOADED",
        "DEDUP",
        "READ",
        "CACHE HITS",
        "ERRORS",
    )
]
_MEMO_COLUMNS = [Column(name, number=True) for name in ("COMPUTED ONCE", "MEMO HITS", "TIME SAVED")]
_STORE_COLUMNS = [
    Column(name, number=True)
    for name in ("BLOBS", "STORED", "FETCHED", "FAILED CALLS", "UPLOAD 99%", "FETCH 99%")
]
_OBJECT_COLUMNS = [
    Column("OBJECT", breaks=True),
    *(Column(name, number=True) for name in ("LOADS", "HITS", "REFERENCES", "LATE")),
    Column("LAST USED"),
]
_LABELS = 10  # characters


@click.command()
@click.option("--since", type=DURATION, metavar="TIME", help="Only the last 30m, 6h, 7d…")
@click.option(
    "--by", type=click.Choice(["task", "argument", "store", "object"]), help="Print a row for each."
)
@as_json
@click.option(
    "--watch", type=click.FloatRange(min=0.2), metavar="SECONDS", help="Repeat until interrupted."
)
@click.option("--reset", is_flag=True, help="Reset all counters to zero.")
@click.pass_context
def stats(
    ctx: click.Context,
    since: float | None,
    by: str | None,
    as_json: bool,
    watch: float | None,
    reset: bool,
) -> None:
    """Show what was saved, stored, and fetched.

    The statistics cover all processes: values, bytes, deduplication, errors, and times.

    A process writes its counts every few seconds (offload_stats_interval) and when it exits; a
    killed process loses the counts it hasn't written yet. --since works for totals (by the minute
    for three hours), and for tasks and stores by the hour. Counts by argument are for all time, and
    counts by catalog object for the last 90 days.
    """
    if since is not None and by == "object":
        raise click.UsageError("counts by object always cover 90 days: omit --since")
    if since is not None and by == "argument":
        raise click.UsageError(
            "counts by argument always cover all time: omit --since or --by argument"
        )
    runtime = runtime_of(ctx)
    if reset:
        runtime.recorder.write()
        sums_of(runtime.store).clear()
        log = error_log_of(runtime.store)
        if log is not None:
            log.clear()
        if as_json:
            print_json({"store": runtime.store.url, "reset": True})
        else:
            click.echo(f"{runtime.store.url}: counters reset to zero")
        return

    def read() -> Report:
        runtime.recorder.write()
        return report(sums_of(runtime.store), since, tasks=by is not None or as_json)

    def show(found: Report) -> None:
        if as_json:
            print_json(
                {**_document(runtime, found), **(_objects(runtime) if by == "object" else {})}
            )
        else:
            _print(runtime, found, since, by)

    if watch is None:
        show(read())
    else:
        _watch(read, show, watch)


def _watch(read: Callable[[], Report], show: Callable[[Report], None], seconds: float) -> None:
    """Show the statistics until interrupted; keep the last ones while the store is unavailable."""
    with suppress(KeyboardInterrupt):
        while True:
            try:
                found = read()
            except StoreUnavailable as exc:
                click.echo(printable(f"{exc}; retrying in {seconds:g} s"), err=True)
            else:
                click.clear()
                show(found)
            time.sleep(seconds)


def _print(runtime: Runtime, found: Report, since: float | None, by: str | None) -> None:
    _print_span(runtime, since, found.start)
    if by is None:
        print_labelled(_describe(found.total).items(), _LABELS)
        return
    if by == "object":
        _print_objects(runtime)
        return
    columns, rows = _table(runtime, found, by)
    if rows:
        print_rows(rows, [Column(by.upper(), breaks=True), *columns])
    else:
        click.echo("no counts")


def _print_span(runtime: Runtime, since: float | None, start: float | None) -> None:
    when = time.strftime("since %F %H:%M", time.localtime(start))
    click.echo(f"{runtime.store.url}, {'all time' if since is None else when}")


def _print_objects(runtime: Runtime) -> None:
    rows = [
        (
            name if bucket == DEFAULT else f"{bucket}/{name}",
            *(f"{number:,}" for number in (used.loads, used.hits, used.refs, used.late)),
            "-" if used.last is None else human_time(used.last),
        )
        for (bucket, name), used in _by_use(runtime)
    ]
    if rows:
        print_rows(rows, _OBJECT_COLUMNS)
    else:
        click.echo("no counts")


def _by_use(runtime: Runtime) -> list[tuple[tuple[str, str], Usage]]:
    return sorted(usage_of(runtime).items(), key=lambda item: (-item[1].uses, item[0]))


def _objects(runtime: Runtime) -> dict[str, Any]:
    return {
        "objects": [
            {"bucket": bucket, "name": name, **describe_usage(used)}
            for (bucket, name), used in _by_use(runtime)
        ]
    }


def _table(runtime: Runtime, found: Report, by: str) -> tuple[list[Column], list[tuple[str, ...]]]:
    if by == "store":
        figures = by_store(found, runtime.store)
        return _STORE_COLUMNS, [(url, *_store_row(each)) for url, each in figures.items()]
    if by == "task":
        named = dict(found.tasks)
    else:
        named = {f"{task} {argument}": each for (task, argument), each in found.arguments.items()}
    ordered = sorted(named.items(), key=lambda item: (-item[1]["bytes_offloaded"], item[0]))
    memo = by == "task" and found.total.uses_memo
    return [*_COLUMNS, *(_MEMO_COLUMNS if memo else ())], [
        (name or OUTSIDE, *_row(figures), *(_memo_row(figures) if memo else ()))
        for name, figures in ordered
    ]


def _row(figures: Figures) -> tuple[str, ...]:
    return (
        f"{figures['values_seen']:,}",
        f"{figures['values_offloaded']:,}",
        human_size(figures["bytes_offloaded"]),
        human_size(figures["bytes_uploaded"]),
        human_ratio(figures.deduplication),
        f"{figures['values_fetched'] + figures['cache_hits']:,}",
        human_percent(figures.hit_ratio),
        f"{sum(figures.errors.values()):,}",
    )


def _memo_row(figures: Figures) -> tuple[str, ...]:
    return (
        f"{figures['memo_hits']:,}",
        human_percent(figures.memo_hit_ratio),
        human_time_saved(figures.memo_seconds_saved),
    )


def _store_row(figures: Figures) -> tuple[str, ...]:
    return (
        f"{figures['blobs_uploaded']:,}",
        human_size(figures["bytes_stored"]),
        human_size(figures["bytes_fetched"]),
        f"{figures['calls_failed']:,}",
        _quantile(figures, "upload", 0.99).removeprefix("within "),
        _quantile(figures, "fetch", 0.99).removeprefix("within "),
    )


def _describe(total: Figures) -> dict[str, str]:
    def size(name: str) -> str:
        return human_size(total[name])

    def number(name: str) -> str:
        return f"{total[name]:,}"

    def some(name: str, noun: str, did: str = "") -> str:
        return human_count(total[name], noun + did, f"{noun}s{did}")

    errors = ", ".join(f"{count:,} {kind}" for kind, count in total.errors.items()) or "none"
    dedup, hits = human_ratio(total.deduplication), human_percent(total.hit_ratio)
    texts = {
        "values": f"{number('values_seen')} inspected, {number('values_offloaded')} by reference, "
        f"{number('values_deduplicated')} of them deduplicated",
        "bytes": f"{size('bytes_offloaded')} kept out of messages and results, "
        f"{size('bytes_uploaded')} uploaded ({dedup} deduplication), {size('bytes_stored')} stored",
        "fetched": f"{some('values_fetched', 'value')}, {size('bytes_fetched')}; node cache: "
        f"{some('cache_hits', 'hit')} ({hits}), {size('cache_bytes')}"
        + (
            f"; written there by publishers: {size('cache_written_bytes')}"
            if total["cache_written"]
            else ""
        ),
        "errors": f"{errors}; retried: {some('store_retries', 'store call')}, "
        f"{some('task_retries', 'task')}; refused: {some('refs_refused', 'reference')}",
    }
    if total.uses_memo:
        texts["memo"] = (
            f"{some('memo_hits', 'computation', ' saved')} "
            f"({human_percent(total.memo_hit_ratio)} of "
            f"{human_count(total.memo_lookups, 'call')}), "
            f"{human_time_saved(total.memo_seconds_saved)}; "
            f"waits: {number('memo_waits')}; "
            f"uncached: {number('memo_uncached')}; fenced off: {number('memo_fenced')}"
        )
    if total.uses_catalog:
        texts["catalog"] = (
            f"{some('catalog_saves', 'version', ' saved')} "
            f"({number('catalog_conflicts')} existed), "
            f"{some('catalog_loads', 'object', ' loaded')}, "
            f"{some('catalog_refs', 'reference')}, {some('catalog_late', 'late argument')}, "
            f"{some('catalog_removed', 'version', ' removed')}"
        )
    if total["observed_values"]:
        texts["observed"] = (
            f"{some('observed_values', 'value')} would travel by reference, "
            f"{size('observed_bytes')}, {size('observed_repeated_bytes')} of them deduplicated"
        )
    texts.update({step: _timing(total, step) for step in STEPS if total.times(step)[-1]})
    return texts


def _timing(total: Figures, step: str) -> str:
    count = total.times(step)[-1]
    half, most = (_quantile(total, step, part) for part in (0.5, 0.99))
    average = human_latency(total.seconds(step) / count)
    return f"{human_count(count, 'time')}, {average} on average, 50% {half}, 99% {most}"


def _quantile(figures: Figures, step: str, part: float) -> str:
    """Describe the quantile *part* (0 to 1) of a step's times: ``within 16 ms``, ``over 16 s``."""
    found = figures.quantile(step, part)
    if found is not None and math.isinf(found):
        return f"over {human_latency(BOUNDS[-1])}"
    return f"within {human_latency(found)}"


def _document(runtime: Runtime, found: Report) -> dict[str, Any]:
    """Return a report as a JSON document."""
    return {
        "store": runtime.store.url,
        "since": found.start,
        "total": _counts(found.total),
        "stores": {url: _counts(each) for url, each in by_store(found, runtime.store).items()},
        "tasks": {task: _counts(each) for task, each in sorted(found.tasks.items())},
        "arguments": [
            {"task": task, "argument": argument, **_counts(each)}
            for (task, argument), each in sorted(found.arguments.items())
        ],
    }


def _counts(figures: Figures) -> Mapping[str, Any]:
    """Return the counters as a JSON document."""
    ratio = figures.deduplication
    return {
        **dict(sorted(figures.counts.items())),
        "deduplication": None if ratio is None or math.isinf(ratio) else round(ratio, 3),
    }


# -- predictions

_SAVINGS = [
    Column(name, number=True)
    for name in ("OFFLOADED", "BYTES", "STORED", "ROUND TRIPS", "CPU SAVED")
]
_BY_THRESHOLD = [Column("THRESHOLD", number=True), *_SAVINGS, Column("")]
_BY_TASK = [
    Column("TASK", breaks=True),
    *(Column(name, number=True) for name in ("VALUES", "OF BYTES", "BEST THRESHOLD")),
    *_SAVINGS,
]


@click.command()
@click.option("--since", type=DURATION, metavar="TIME", help="Only the last 30m, 6h, 7d…")
@click.option("--by", type=click.Choice(["task"]), help="Print one row per task.")
@as_json
@click.pass_context
def estimate(ctx: click.Context, since: float | None, by: str | None, as_json: bool) -> None:
    """Predict what each threshold would save, and recommend one.

    The prediction uses the sizes of values counted in mode observe or on. It estimates CPU time
    from measurements on another machine; see docs/reference/statistics.md.
    """
    if since is not None and by is not None:
        raise click.UsageError("sizes by task always cover all time: omit --since or --by")
    runtime = runtime_of(ctx)
    runtime.recorder.write()
    found = estimate_of(report(sums_of(runtime.store), since), runtime.settings.threshold)
    if as_json:
        print_json({"store": runtime.store.url, "mode": runtime.settings.mode, **found.as_dict()})
        return
    _print_span(runtime, since, found.start)
    if found.total.values:
        if by is None:
            print_rows(_by_threshold(found), _BY_THRESHOLD)
        else:
            print_rows(_by_task(found), _BY_TASK)
    for line in (found.advice, *_hints(runtime, found)):
        click.echo(line)


def _by_threshold(found: Estimate) -> Iterator[tuple[str, ...]]:
    for each in found.total.candidates:
        marks = {"current": each.threshold == found.threshold, "best": each == found.total.best}
        notes = ", ".join(text for text, applies in marks.items() if applies)
        yield (human_size(each.threshold), *_savings_row(each), notes)


def _by_task(found: Estimate) -> Iterator[tuple[str, ...]]:
    ordered = sorted(found.tasks.items(), key=lambda item: (-item[1].bytes, item[0]))
    for task, choices in ordered:
        best = choices.best
        threshold = "none" if best is None else human_size(best.threshold)
        row = ["-"] * len(_SAVINGS) if best is None else _savings_row(best)
        yield (task or OUTSIDE, f"{choices.values:,}", human_size(choices.bytes), threshold, *row)


def _savings_row(each: Candidate) -> tuple[str, ...]:
    return (
        f"{each.values:,}",
        human_size(each.bytes),
        human_size(each.stored_bytes),
        f"{each.round_trips:,}",
        human_time_saved(each.saved_seconds),
    )


def _hints(runtime: Runtime, found: Estimate) -> Iterator[str]:
    if runtime.settings.mode == "observe" and runtime.settings.store is None:
        yield "Processes save their observations only if offload_store is set."
    if found.counted_from == found.threshold and found.total.values:
        yield (
            f"In mode on, values below offload_threshold ({human_size(found.threshold)}) "
            "are not counted: use mode observe to evaluate lower thresholds."
        )
