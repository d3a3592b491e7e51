"""``celery offload gc``: delete what has expired."""

from __future__ import annotations

from typing import Any

import click

from offload.cli.context import runtime_of
from offload.cli.output import print_json
from offload.cli.progress import Progress
from offload.gc import SweepReport, sweep
from offload.stores.protocols import SweepItem
from offload.text import human_size, printable

__all__ = ("gc",)


@click.command()
@click.option("--dry-run", "-n", is_flag=True, help="Delete nothing; only report.")
@click.option("--verbose", "-v", is_flag=True, help="List each item with the reason.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def gc(ctx: click.Context, dry_run: bool, verbose: bool, as_json: bool) -> None:
    """Delete what has expired from the store.

    Files, S3, and fsspec need this, as they delete nothing by themselves; for other stores it is
    harmless. It may run at any time. If another sweep of the store is running, this one does
    nothing and succeeds.
    """
    runtime = runtime_of(ctx)
    listed: list[dict[str, Any]] = []

    def seen(swept: SweepItem) -> None:
        progress.step(swept.size)
        if verbose and as_json:
            listed.append(
                {"kind": swept.kind, "name": swept.name, "bytes": swept.size, "why": swept.why}
            )
        elif verbose:
            line = f"{swept.kind}  {swept.name}  {human_size(swept.size)}  {swept.why}"
            click.echo(printable(line))

    with Progress(f"sweeping {runtime.store.url}", shown=not verbose) as progress:
        collected = sweep(runtime.store, dry_run=dry_run, seen=seen)
    if as_json:
        print_json({**collected.as_dict(), **({"swept": listed} if verbose else {})})
    else:
        _print(collected)


def _print(collected: SweepReport) -> None:
    if collected.busy is not None:
        click.echo(f"skipped: {collected.store} is being swept by {collected.busy}")
        return
    did = "would delete" if collected.dry_run else "deleted"
    what = ", ".join(
        f"{total.count} {kind}{'s' * (total.count != 1)}"
        for kind, total in sorted(collected.kinds.items())
    )
    click.echo(
        f"{collected.store}: {did} {what or 'nothing'} "
        f"({human_size(collected.size)}) in {collected.seconds:.1f} s"
    )
