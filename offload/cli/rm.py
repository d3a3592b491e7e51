"""``celery offload rm``: remove blobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from offload.cli.context import runtime_of
from offload.cli.output import print_json, print_rows
from offload.digest import Digest
from offload.errors import InvalidRef
from offload.inspect.blobs import digest_prefix, find_digest, holders_of, remove_blobs, stored_sizes
from offload.stores.protocols import Store
from offload.text import human_duration, human_size, printable

__all__ = ("rm",)

_SHOWN = 5  # holders


@click.command()
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also what somebody holds, or may.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; needs --yes.")
@click.pass_context
def rm(ctx: click.Context, digests: tuple[str, ...], yes: bool, force: bool, as_json: bool) -> None:
    """Remove blobs from the store.

    A digest may be its first 8 digits or more. What a message, a result, a pin or a put holds
    stays, also if it was not held yet when this was asked, unless --force is said: tasks that need
    it fail with BlobMissing. Where no account is kept of who needs what (files, S3), nothing is
    removed without --force. Chunks of a value stay: they may be others' as well, and end by
    themselves.

    It ends with 1 if something stays.
    """
    if as_json and not yes:
        raise click.UsageError("--json asks nothing: say --yes")
    store = runtime_of(ctx).store
    wanted = list(dict.fromkeys(_digest(store, text) for text in digests))
    sizes = stored_sizes(store, wanted)
    there = [digest for digest in wanted if digest in sizes]
    if not as_json:
        _show(store, wanted, sizes)
    if there and not yes:
        click.confirm(f"Remove {len(there)} of {printable(store.url)}?", abort=True)
    held = remove_blobs(store, there, force=force)
    gone = [digest for digest in there if digest not in held]
    if as_json:
        missing = [digest for digest in wanted if digest not in sizes]
        print_json({"removed": gone, "held": held, "missing": missing})
    else:
        for digest, holders in held.items():
            click.echo(printable(f"{digest} stays: {_said(holders)}"), err=True)
        click.echo(f"removed {len(gone)}")
    if len(gone) < len(wanted):
        ctx.exit(1)


def _digest(store: Store, text: str) -> Digest:
    begin = digest_prefix(text)
    if begin is None:
        raise InvalidRef(f"{text[:100]!r} is no digest of 8 digits or more")
    return find_digest(store, begin)


def _show(store: Store, digests: Sequence[Digest], sizes: Mapping[Digest, int]) -> None:
    rows = []
    for digest in digests:
        if digest in sizes:
            rows.append((digest, human_size(sizes[digest]), _said(holders_of(store, digest))))
        else:
            rows.append((digest, "-", "not in the store"))
    print_rows(rows)


def _said(holders: Mapping[str, float] | None) -> str:
    if holders is None:
        return "nobody knows who needs it, for no account is kept here"
    if not holders:
        return "nobody holds it"
    longest = sorted(holders.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{name} for {human_duration(left)}" for name, left in longest[:_SHOWN])
    more = len(longest) - _SHOWN
    return f"held by {named}" + (f" and {more:,} more" if more > 0 else "")
