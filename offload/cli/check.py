"""``celery offload check``: send a value to a worker and back."""

from __future__ import annotations

from dataclasses import asdict

import click

from offload.cli.findings import count, exit_code, listed, print_counts, print_finding
from offload.cli.options import SIZE, as_json, runtime_of
from offload.cli.output import print_json
from offload.doctor import Measured, round_trip
from offload.text import human_latency, human_size

__all__ = ("check",)


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
    """Send a value through broker, store, and a worker, and back.

    Reports bytes and times, or which step failed and what to do about it. It works with every
    result backend, and without one. The exit code is 0 if the value came back, 69 if the broker or
    the store is unavailable or no worker replied, and 1 for any other error.
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
