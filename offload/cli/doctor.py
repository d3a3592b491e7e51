"""``celery offload doctor`` and ``check``: find problems, and send a value to a worker and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click

from offload.cli import UNAVAILABLE
from offload.cli.options import SIZE, as_json, runtime_of
from offload.cli.output import print_json, print_labelled
from offload.doctor import Examined, Measured, examine, round_trip
from offload.errors import OffloadError
from offload.inspect import Finding
from offload.text import human_count, human_latency, human_size


@click.command()
@as_json
@click.option(
    "--workers/--no-workers",
    default=True,
    show_default=True,
    help="Compare the settings of running workers with this process.",
)
@click.option(
    "--timeout",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.1, 60),
    help="Seconds to wait for workers' replies.",
)
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, workers: bool, timeout: float) -> None:
    """Find problems, and suggest remedies.

    Run it where publishers and workers run, with their settings. It writes a few bytes to the
    store and deletes them. The exit code is 1 if it finds an error, 69 if a store is unavailable,
    and 0 if it finds at most warnings.
    """
    found = []
    for examined in _examined(ctx, timeout if workers else None):
        found.append(examined)
        if not as_json:
            print_finding(examined)
    if as_json:
        print_json(listed(found))
    else:
        print_counts(found)
    ctx.exit(exit_code(found))


def _examined(ctx: click.Context, workers: float | None) -> Iterator[Examined]:
    try:
        runtime = runtime_of(ctx)
    except OffloadError:
        raise
    except Exception as exc:  # raised by the app's own modules
        what = f"the app's modules cannot be imported: {type(exc).__name__}: {exc}"
        yield Examined("app", Finding("error", what))
        return
    yield from examine(runtime, workers=workers)


@click.command()
@as_json
@click.option("--size", type=SIZE, default="1MB", show_default=True, help="Size of the value.")
@click.option(
    "--timeout",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    help="Seconds to wait for a worker.",
)
@click.option("--queue", metavar="NAME", help="Queue to send the task to.")
@click.pass_context
def check(
    ctx: click.Context, as_json: bool, size: float, timeout: float, queue: str | None
) -> None:
    """Send a value through the broker, the store, and a worker, and back.

    Reports bytes and times, or which step failed and what to do about it. Works with any result
    backend, or none. The exit code is 0 if the value came back, 69 if the broker or the store is
    unavailable or no worker replied, and 1 for any other error.
    """
    measured = Measured(int(size))
    found = []
    for examined in round_trip(runtime_of(ctx), measured, timeout=timeout, queue=queue):
        found.append(examined)
        if not as_json:
            print_finding(examined)
    if as_json:
        print_json({**asdict(measured), "total": measured.total, **listed(found)})
    elif measured.total is not None and not count(found, "error"):
        took = human_latency(measured.total)
        click.echo(f"{human_size(measured.size)} went to a worker and back in {took}")
    else:
        print_counts(found)
    ctx.exit(exit_code(found))


_INDENT = 9


def print_finding(examined: Examined) -> None:
    """Print a finding with its remedy."""
    finding = examined.finding
    is_named = finding.what.startswith(examined.subject)  # errors of stores name the store
    subject = "" if is_named else f"{examined.subject}: "
    lines = [(str(finding.level), f"{subject}{finding.what}")]
    if finding.remedy:
        lines.append(("", f"-> {finding.remedy}"))
    print_labelled(lines, _INDENT, levels=True)


def count(found: Sequence[Examined], level: str) -> int:
    return sum(each.finding.level == level for each in found)


def print_counts(found: Sequence[Examined]) -> None:
    errors, warnings = count(found, "error"), count(found, "warning")
    click.echo(f"{human_count(errors, 'error')}, {human_count(warnings, 'warning')}")


def listed(found: Sequence[Examined]) -> dict[str, Any]:
    """Return findings as a JSON document."""
    return {
        "errors": count(found, "error"),
        "warnings": count(found, "warning"),
        "findings": [{"subject": each.subject, **asdict(each.finding)} for each in found],
    }


def exit_code(found: Sequence[Examined]) -> int:
    """Return 0 if there are no errors, 69 if a server is unavailable, else 1."""
    if not count(found, "error"):
        return 0
    return UNAVAILABLE if any(each.unavailable for each in found) else 1
