"""``celery offload locks …``: list locks, and release them no matter who owns them."""

from __future__ import annotations

import click

from offload.cli.options import as_json, runtime_of
from offload.cli.output import Column, print_json, print_rows
from offload.locks import Lock, break_lock, list_locks
from offload.text import human_count, human_duration, printable

_COLUMNS = (Column("LOCK"), Column("OWNER"), Column("EXPIRES IN"), Column("FENCE"))


@click.group()
def locks() -> None:
    """List and release locks."""


@locks.command("list")
@click.argument("prefix", default="")
@as_json
@click.pass_context
def list_(ctx: click.Context, prefix: str, as_json: bool) -> None:
    """List held locks whose names start with PREFIX.

    OWNER is the host and process ID of the owner. EXPIRES IN is how long the lock lasts unless it
    is renewed.
    """
    found = sorted(list_locks(runtime_of(ctx).store, prefix))
    if as_json:
        print_json(
            [
                {"name": name, "owner": lock.owner, "ttl": round(lock.ttl, 3), "fence": lock.fence}
                for name, lock in found
            ]
        )
    elif found:
        rows = [
            (name, owner_of(lock.owner), human_duration(lock.ttl), str(lock.fence))
            for name, lock in found
        ]
        print_rows(rows, _COLUMNS)


@locks.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--yes", "-y", is_flag=True, help="Don't ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; needs --yes.")
@click.pass_context
def release(ctx: click.Context, names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Release locks, no matter who owns them.

    Others can then acquire them. An owner that is still working notices the loss at its next
    renewal at the latest; until then, two processes may be working.

    The exit code is 1 if one of the locks wasn't held.
    """
    if as_json and not yes:
        raise click.UsageError("--json can't prompt: add --yes")
    store = runtime_of(ctx).store
    try:
        for name in names:  # all of them, before any is released
            Lock(store, name)
    except ValueError as exc:
        raise click.UsageError(printable(str(exc))) from exc
    if not yes:
        what = human_count(len(names), "lock")
        click.confirm(f"Release {what} in {printable(store.url)}?", abort=True)
    found = {name: break_lock(store, name) for name in names}
    if as_json:
        owners = {name: lock.owner for name, lock in found.items() if lock is not None}
        print_json({"released": owners, "missing": [name for name in found if name not in owners]})
    else:
        for name, lock in found.items():
            had = "not held" if lock is None else f"released; its owner was {owner_of(lock.owner)}"
            click.echo(printable(f"{name}: {had}"))
    if None in found.values():
        ctx.exit(1)


def owner_of(owner: str) -> str:
    """Return the host and process id of a lease's owner."""
    return owner.rpartition(":")[0] or owner
