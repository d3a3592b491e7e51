"""``celery offload stats``: what it saves, and whether anything is wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import click

from offload.cli.context import runtime_of
from offload.cli.duration import Duration
from offload.cli.output import Column, print_json, print_labelled, print_rows
from offload.counters import STEPS
from offload.hooks.runtime import Runtime
from offload.stats import Figures, Report, report, told
from offload.stats.report import tallies_of
from offload.stats.stores import by_store
from offload.text import human_size

__all__ = ("counts", "document", "stats")

_COLUMNS = [
    Column(name, number=True)
    for name in (
        "VALUES",
        "BY REFERENCE",
        "BYTES",
        "UPLOADED",
        "DEDUP",
        "FETCHED",
        "CACHE HITS",
        "ERRORS",
    )
]
_STORE_COLUMNS = [
    Column(name, number=True)
    for name in ("BLOBS", "STORED", "FETCHED", "FAILED CALLS", "UPLOAD 99%", "FETCH 99%")
]
_LABELS = 10  # characters


@click.command()
@click.option("--since", type=Duration(), metavar="TIME", help="Only the last 30m, 6h, 7d …")
@click.option("--by", type=click.Choice(["task", "argument", "store"]), help="A row for each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--watch", type=click.FloatRange(min=0.2), metavar="SECONDS", help="Again and again.")
@click.option("--reset", is_flag=True, help="Forget all that was counted.")
@click.pass_context
def stats(
    ctx: click.Context,
    since: float | None,
    by: str | None,
    as_json: bool,
    watch: float | None,
    reset: bool,
) -> None:
    """Show what all processes counted: values and bytes, what was stored once, errors, times.

    A process writes its counts every few seconds (offload_stats_interval) and when it ends; what
    one that is killed has not written is not counted. Arguments are told apart in all that was
    counted, tasks and stores also by hour.
    """
    if since is not None and by == "argument":
        raise click.UsageError("arguments are counted in all only: leave --since or --by argument")
    runtime = runtime_of(ctx)
    if reset:
        runtime.recorder.write()
        tallies_of(runtime.store).clear()
        if as_json:
            print_json({"store": runtime.store.url, "reset": True})
        else:
            click.echo(f"{runtime.store.url}: counters start from zero")
        return
    while True:
        _show(runtime, since, by, as_json=as_json)
        if watch is None:
            return
        time.sleep(watch)
        click.clear()


def _show(runtime: Runtime, since: float | None, by: str | None, *, as_json: bool) -> None:
    runtime.recorder.write()
    found = report(tallies_of(runtime.store), since, tasks=by is not None or as_json)
    if as_json:
        print_json(document(runtime, found))
        return
    rows = _rows(runtime, found, by)
    when = (
        "in all" if since is None else time.strftime("since %F %H:%M", time.localtime(found.begin))
    )
    click.echo(f"{runtime.store.url}, {when}")
    if by is not None:
        columns = _STORE_COLUMNS if by == "store" else _COLUMNS
        if rows:
            print_rows(rows, [Column(by.upper(), breaks=True), *columns])
        else:
            click.echo("nothing was counted")
        return
    print_labelled(_told(found.total).items(), _LABELS)


def _rows(runtime: Runtime, found: Report, by: str | None) -> list[tuple[str, ...]]:
    if by == "store":
        return [
            (url, *_store_row(figures)) for url, figures in by_store(found, runtime.store).items()
        ]
    if by == "task":
        named = dict(found.tasks)
    elif by == "argument":
        named = {f"{task} {argument}": each for (task, argument), each in found.arguments.items()}
    else:
        return []
    ordered = sorted(named.items(), key=lambda item: (-item[1]["bytes_offloaded"], item[0]))
    return [(name or "-", *_row(figures)) for name, figures in ordered]


def _row(figures: Figures) -> tuple[str, ...]:
    return (
        f"{figures['values_seen']:,}",
        f"{figures['values_offloaded']:,}",
        human_size(figures["bytes_offloaded"]),
        human_size(figures["bytes_uploaded"]),
        told.times(figures.deduplication),
        f"{figures['values_fetched'] + figures['cache_hits']:,}",
        told.percent(figures.hit_ratio),
        f"{sum(figures.errors.values()):,}",
    )


def _store_row(figures: Figures) -> tuple[str, ...]:
    return (
        f"{figures['blobs_uploaded']:,}",
        human_size(figures["bytes_stored"]),
        human_size(figures["bytes_fetched"]),
        f"{figures['calls_failed']:,}",
        told.bound(figures.quantile("upload", 0.99)),
        told.bound(figures.quantile("fetch", 0.99)),
    )


def _told(total: Figures) -> dict[str, str]:
    def size(name: str) -> str:
        return human_size(total[name])

    def number(name: str) -> str:
        return f"{total[name]:,}"

    errors = ", ".join(f"{count:,} {kind}" for kind, count in total.errors.items()) or "none"
    dedup, hits = told.times(total.deduplication), told.percent(total.hit_ratio)
    texts = {
        "values": f"{number('values_seen')} looked at, {number('values_offloaded')} by reference, "
        f"{number('values_deduplicated')} of them stored before",
        "bytes": f"{size('bytes_offloaded')} kept out of messages and results, "
        f"{size('bytes_uploaded')} uploaded ({dedup} deduplicated), {size('bytes_stored')} stored",
        "fetched": f"{number('values_fetched')} values, {size('bytes_fetched')}; the machine had "
        f"{number('cache_hits')} more ({hits}), {size('cache_bytes')}",
        "errors": f"{errors}; tried again: {number('store_retries')} store calls, "
        f"{number('task_retries')} tasks; refused: {number('refs_refused')} references",
    }
    if total["observed_values"]:
        texts["observed"] = (
            f"{number('observed_values')} values would travel by reference, "
            f"{size('observed_bytes')}, of which {size('observed_repeated_bytes')} came again"
        )
    texts.update({step: _timing(total, step) for step in STEPS if total.times(step)[-1]})
    return texts


def _timing(total: Figures, step: str) -> str:
    count = total.times(step)[-1]
    half, most = (told.bound(total.quantile(step, part)) for part in (0.5, 0.99))
    average = total.seconds(step) / count * 1e3
    return f"{count:,} times, {average:,.1f} ms on average, half within {half}, 99 % within {most}"


def document(runtime: Runtime, found: Report) -> dict[str, Any]:
    """Return a report, as JSON."""
    return {
        "store": runtime.store.url,
        "since": found.begin,
        "total": counts(found.total),
        "stores": {url: counts(each) for url, each in by_store(found, runtime.store).items()},
        "tasks": {task: counts(each) for task, each in sorted(found.tasks.items())},
        "arguments": [
            {"task": task, "argument": argument, **counts(each)}
            for (task, argument), each in sorted(found.arguments.items())
        ],
    }


def counts(figures: Figures) -> Mapping[str, Any]:
    """Return the counters, as JSON."""
    ratio = figures.deduplication
    return {
        **dict(sorted(figures.counts.items())),
        "deduplication": None if ratio is None or math.isinf(ratio) else round(ratio, 3),
    }
