"""``celery offload purge``: discard the messages of queues and release the values they hold."""

from __future__ import annotations

from collections import Counter

import click

from offload.cli.context import runtime_of
from offload.cli.output import print_json, printable
from offload.cli.progress import Progress
from offload.hooks.purge import RELEASED, SHARED, UNREADABLE
from offload.hooks.purge import purge as discard

__all__ = ("purge",)


@click.command()
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE...")
@click.option("--force", "-f", is_flag=True, help="Don't prompt for verification.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; needs --force.")
@click.pass_context
def purge(ctx: click.Context, queues: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Erase all messages from queues, and release the values they hold.

    Like `celery purge -Q QUEUE`, which leaves the values in the store until their retention
    ends. Here they are deleted after offload_grace, unless something else holds them. Values of
    messages that may have a copy in another queue are kept. There's no undo.
    """
    if as_json and not force:
        raise click.UsageError("--json can't prompt: add --force")
    runtime = runtime_of(ctx)
    names = list(dict.fromkeys(queues))
    if not force:
        click.confirm(
            f"WARNING: This will remove all tasks from: {printable(', '.join(names))}.\n"
            "         There is no undo for this operation!\n\n"
            "(to skip this prompt use the -f option)\n"
            "Are you sure you want to delete all tasks?",
            abort=True,
        )
    counts = {name: Counter[str]() for name in names}
    with Progress("purging") as progress:
        for each in discard(runtime, names):
            counts[each.queue][each.holds] += 1
            progress.step(0)
    if as_json:
        print_json({name: {"purged": c.total(), **c} for name, c in counts.items()})
        return
    for name, count in counts.items():
        click.echo(printable(f"Purged {count.total()} messages from {name}{_holds(count)}."))


def _holds(count: Counter[str]) -> str:
    """Describe what happened to the messages' values."""
    told = {
        RELEASED: "released the values of {}",
        SHARED: "{} may have a copy in another queue, and their values expire by time",
        UNREADABLE: "{} can't be read, and their values expire by time",
    }
    return "".join(f"; {text.format(count[kind])}" for kind, text in told.items() if count[kind])
