"""``celery offload estimate``: predict what each threshold would save."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from offload.cli.options import DURATION, as_json, runtime_of
from offload.cli.output import Column, print_json, print_rows
from offload.hooks.runtime import Runtime
from offload.metrics.estimate import Candidate, Estimate
from offload.metrics.estimate import estimate as estimate_of
from offload.metrics.report import report
from offload.metrics.storage import sums_of
from offload.text import human_size, human_time_saved

__all__ = ("estimate",)

_COLUMNS = [
    Column(name, number=True)
    for name in ("OFFLOADED", "BYTES", "STORED", "ROUND TRIPS", "CPU SAVED")
]
_BY_THRESHOLD = [Column("THRESHOLD", number=True), *_COLUMNS, Column("")]
_BY_TASK = [
    Column("TASK", breaks=True),
    *(Column(name, number=True) for name in ("VALUES", "OF BYTES", "BEST THRESHOLD")),
    *_COLUMNS,
]


@click.command()
@click.option("--since", type=DURATION, metavar="TIME", help="Only the last 30m, 6h, 7d…")
@click.option("--by", type=click.Choice(["task"]), help="One row per task.")
@as_json
@click.pass_context
def estimate(ctx: click.Context, since: float | None, by: str | None, as_json: bool) -> None:
    """Predict what each threshold would save, and recommend one.

    The prediction uses the sizes of values counted in mode observe or on. CPU time is estimated
    from measurements on another machine; see docs/reference/statistics.md.
    """
    if since is not None and by is not None:
        raise click.UsageError("sizes by task are kept for all time only: omit --since or --by")
    runtime = runtime_of(ctx)
    runtime.recorder.write()
    found = estimate_of(report(sums_of(runtime.store), since), runtime.settings.threshold)
    if as_json:
        print_json({"store": runtime.store.url, "mode": runtime.settings.mode, **found.as_dict()})
        return
    start = time.localtime(found.start)
    when = "all time" if since is None else time.strftime("since %F %H:%M", start)
    click.echo(f"{runtime.store.url}, {when}")
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
        yield (human_size(each.threshold), *_row(each), notes)


def _by_task(found: Estimate) -> Iterator[tuple[str, ...]]:
    ordered = sorted(found.tasks.items(), key=lambda item: (-item[1].bytes, item[0]))
    for task, choices in ordered:
        best = choices.best
        threshold = "none" if best is None else human_size(best.threshold)
        row = ["-"] * len(_COLUMNS) if best is None else _row(best)
        yield (task or "-", f"{choices.values:,}", human_size(choices.bytes), threshold, *row)


def _row(each: Candidate) -> tuple[str, ...]:
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
