"""``celery offload gc``: remove what has ended."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from offload.cli.context import hook_of
from offload.cli.output import print_json
from offload.gc import Collected, collect
from offload.ref import human_size
from offload.stores.base import Swept

__all__ = ("gc",)

_REDRAW = 0.2  # seconds


@click.command()
@click.option("--dry-run", "-n", is_flag=True, help="Remove nothing; say what would be removed.")
@click.option("--verbose", "-v", is_flag=True, help="List each thing and why it goes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def gc(ctx: click.Context, dry_run: bool, verbose: bool, as_json: bool) -> None:
    """Remove what has ended from the store.

    Needed for files, S3 and fsspec, which remove nothing by themselves, and harmless for all.
    It may run at any time. If another sweep of the store is under way nothing is done, which
    is no error.
    """
    hook = hook_of(ctx)
    listed: list[dict[str, Any]] = []
    progress = _Progress(hook.store.url, shown=sys.stderr.isatty() and not verbose)

    def seen(swept: Swept) -> None:
        progress.step(swept.size)
        if verbose and as_json:
            listed.append(
                {"kind": swept.kind, "name": swept.name, "bytes": swept.size, "why": swept.why}
            )
        elif verbose:
            click.echo(f"{swept.kind}  {swept.name}  {human_size(swept.size)}  {swept.why}")

    try:
        collected = collect(hook.store, dry_run=dry_run, seen=seen)
    finally:
        progress.end()
    if as_json:
        print_json({**collected.as_dict(), **({"swept": listed} if verbose else {})})
    else:
        _print(collected)


def _print(collected: Collected) -> None:
    if collected.busy is not None:
        click.echo(f"nothing done: {collected.store} is being swept by {collected.busy}")
        return
    did = "would remove" if collected.dry_run else "removed"
    what = ", ".join(
        f"{total.count} {kind}{'s' * (total.count != 1)}"
        for kind, total in sorted(collected.kinds.items())
    )
    click.echo(
        f"{collected.store}: {did} {what or 'nothing'} "
        f"({human_size(collected.size)}) in {collected.seconds:.1f} s"
    )


class _Progress:
    """One line on standard error, where that is a terminal."""

    def __init__(self, store: str, *, shown: bool) -> None:
        self._store = store
        self._shown = shown
        self._count = self._size = 0
        self._next = 0.0
        self._draw()

    def step(self, size: int) -> None:
        self._count += 1
        self._size += size
        self._draw()

    def end(self) -> None:
        if self._shown:
            click.echo("\r\033[K", err=True, nl=False)

    def _draw(self) -> None:
        now = time.monotonic()
        if self._shown and now >= self._next:
            self._next = now + _REDRAW
            text = f"sweeping {self._store}: {self._count} found, {human_size(self._size)}"
            click.echo(f"\r\033[K{text}", err=True, nl=False)
