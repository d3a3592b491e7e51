"""``celery offload top``: what happens now, on a terminal."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any

import click

from offload.cli.context import runtime_of
from offload.cli.duration import Duration
from offload.cli.output import print_json
from offload.cli.terminal import is_terminal
from offload.errors import ConfigurationError
from offload.hooks.runtime import Runtime

if TYPE_CHECKING:
    from rich.console import Console

    from offload.cli.top.reading import Reader

__all__ = ("top",)

_LOOK = 0.1  # seconds for which a key is waited for before the size of the terminal is looked at


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(min=0.2),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often the store is read.",
)
@click.option("--since", type=Duration(), metavar="TIME", help="Sums of the last 30m, 6h, 7d …")
@click.option("--once", is_flag=True, help="Print all of it once, also where there is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, once.")
@click.pass_context
def top(
    ctx: click.Context, interval: float, since: float | None, once: bool, as_json: bool
) -> None:
    """Show what is stored, fetched and saved now: tasks by traffic, times, errors.

    Key s sorts by something else, q ends. What is counted arrives here when processes write it,
    every few seconds (offload_stats_interval). So what happens now is told by the last minute; for
    tasks, whose minutes nobody keeps, once this ran for two such intervals. While the store is
    away the last figures stay.
    """
    if as_json:
        _print_json(runtime_of(ctx), since)
        return
    console = _console()
    runtime = runtime_of(ctx)
    if once:
        _print(runtime, console, since)
        return
    if not is_terminal(sys.stdout):
        raise click.ClickException(
            "top needs a terminal: elsewhere use --once, or celery offload stats --watch 2"
        )
    from offload.cli.top.reading import Reader, reading_of

    reader = Reader(reading_of(runtime, since), interval)
    reader.start()
    try:
        _show(reader, console, url=runtime.store.url, since=since)
    except KeyboardInterrupt:
        pass
    finally:
        reader.stop()


def _console() -> Console:
    try:
        from rich.console import Console
    except ImportError as exc:
        raise ConfigurationError('top needs rich: pip install "offload[cli]"') from exc
    return Console(markup=False, emoji=False, highlight=False)


def _print_json(runtime: Runtime, since: float | None) -> None:
    from offload.cli.stats import counts, document
    from offload.cli.top.reading import reading_of

    read = reading_of(runtime, since)()
    now = {"seconds": read.now.seconds, **counts(read.now.figures)}
    print_json({**document(runtime, read.report), "now": now})


def _print(runtime: Runtime, console: Console, since: float | None) -> None:
    from offload.cli.top.reading import State, reading_of
    from offload.cli.top.view import view

    state = State(reading_of(runtime, since)())
    with console.capture() as captured:
        console.print(
            view(state, console, url=runtime.store.url, sort="bytes", since=since, whole=True)
        )
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def _show(reader: Reader, console: Console, **shown: Any) -> None:
    """Show what *reader* reads until a key ends it."""
    from rich.live import Live

    from offload.cli.top.columns import SORTS
    from offload.cli.top.keyboard import END, Keyboard
    from offload.cli.top.view import view

    sorts = cycle(SORTS)
    sort = next(sorts)
    drawn: object = None
    live = Live(console=console, screen=True, auto_refresh=False)
    with _terminated(), Keyboard() as keyboard, live:
        while True:
            state = reader.state
            # How long the store has been away is told by the second.
            now = (state, sort, console.size, int(time.time()) if state.away else 0)
            if now != drawn:
                live.update(view(state, console, sort=sort, **shown), refresh=True)
                drawn = now
            for key in keyboard.pressed(_LOOK).lower():
                if key == END:
                    return
                if key == "s":
                    sort = next(sorts)


@contextmanager
def _terminated() -> Iterator[None]:
    """Within this, SIGTERM ends the process as an exception does: the terminal is set back."""

    def end(number: int, _frame: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
