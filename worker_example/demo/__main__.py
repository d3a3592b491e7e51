"""Run the example's jobs twice and compare: `python -m worker_example.demo [--rows N]`."""

import argparse
import signal
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from worker_example.demo.processes import CHILDREN, DemoFailed, server_program, side
from worker_example.demo.report import same_answers, show

SIDES = {"plain Celery": False, "with offload": True}
JOBS = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker_example.demo")
    parser.add_argument("--rows", type=int, help="use only this many of the 336,776 flights")
    options = parser.parse_args()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)  # clean up as on Ctrl-C

    console = Console()
    started = time.monotonic()
    try:
        server_program()
        console.print(
            "Runs the jobs of one app twice: with plain Celery, and with [b]Offload(app)[/b].\n"
            "Each run has a Redis server of its own for broker and results, and a prefork\n"
            f"worker with {CHILDREN} children. With offload, a second Redis server is the store.\n"
        )
        plain, ours = (run(console, name, options.rows, on) for name, on in SIDES.items())
    except DemoFailed as error:
        Console(stderr=True).print(f"[red]{error}[/red]")
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("\nInterrupted; all started processes have ended.")
        return 130

    show(console, plain, ours)
    console.print(f"The demo took {time.monotonic() - started:.0f} s.")
    if not same_answers(plain, ours):
        console.print("[bold red]The answers differ.[/bold red]")
        return 1
    return 0


def run(console: Console, name: str, rows: int | None, offload: bool) -> dict:
    """Run one side, showing its progress, and return its measurements."""
    measured: dict = {"jobs": {}}
    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with (
        Progress(*columns, console=console, transient=True) as progress,
        side(rows, offload=offload) as events,
    ):
        bar = progress.add_task(f"{name}: starting", total=None)
        for event in events:
            if event["event"] == "ready":
                measured.update(rows=event["rows"], frame=event["frame"])
            elif event["event"] == "tick":
                # A task counts once when it is sent and once when it has been answered.
                done = event["done"] + (event["total"] if event["stage"] == "answered" else 0)
                text = f"{name}: {event['job']}, {event['stage']}"
                progress.update(bar, description=text, completed=done, total=2 * event["total"])
            elif event["event"] == "job":
                measured["jobs"][event["name"]] = event
                console.print(f"{name}: {event['name']:<8} {event['seconds']:6.1f} s")
                progress.reset(bar)
            elif event["event"] == "end":
                measured.update(event)
    return measured


if __name__ == "__main__":
    sys.exit(main())
