"""``celery offload rm``: delete blobs."""

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
@click.option("--yes", "-y", is_flag=True, help="Don't ask for confirmation.")
@click.option("--force", is_flag=True, help="Also delete blobs that are held, or may be.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; needs --yes.")
@click.pass_context
def rm(ctx: click.Context, digests: tuple[str, ...], yes: bool, force: bool, as_json: bool) -> None:
    """Delete blobs from the store.

    DIGEST is at least the first 8 digits of a digest. Blobs held by a message, a result, a pin, or
    a put are kept, even if the hold came after the prompt. --force deletes them, too; tasks that
    need them then fail with BlobMissing. Stores that don't track holds (files, S3) delete nothing
    without --force. The chunks of a value are kept, as other values may share them; they expire by
    themselves.

    The exit code is 1 if a blob is kept or missing.
    """
    if as_json and not yes:
        raise click.UsageError("--json can't prompt: add --yes")
    store = runtime_of(ctx).store
    wanted = list(dict.fromkeys(_digest(store, text) for text in digests))
    sizes = stored_sizes(store, wanted)
    stored = [digest for digest in wanted if digest in sizes]
    if not as_json:
        _show(store, wanted, sizes)
    if stored and not yes:
        click.confirm(f"Delete {len(stored)} from {printable(store.url)}?", abort=True)
    held = remove_blobs(store, stored, force=force)
    deleted = [digest for digest in stored if digest not in held]
    if as_json:
        missing = [digest for digest in wanted if digest not in sizes]
        print_json({"removed": deleted, "held": held, "missing": missing})
    else:
        for digest, holders in held.items():
            click.echo(printable(f"{digest} kept: {_describe(holders)}"), err=True)
        click.echo(f"deleted {len(deleted)}")
    if len(deleted) < len(wanted):
        ctx.exit(1)


def _digest(store: Store, text: str) -> Digest:
    prefix = digest_prefix(text)
    if prefix is None:
        raise InvalidRef(f"{text[:100]!r} is not a digest, or fewer than its first 8 digits")
    return find_digest(store, prefix)


def _show(store: Store, digests: Sequence[Digest], sizes: Mapping[Digest, int]) -> None:
    rows = []
    for digest in digests:
        if digest in sizes:
            rows.append((digest, human_size(sizes[digest]), _describe(holders_of(store, digest))))
        else:
            rows.append((digest, "-", "not in the store"))
    print_rows(rows)


def _describe(holders: Mapping[str, float] | None) -> str:
    if holders is None:
        return "holders unknown: this store doesn't track holds"
    if not holders:
        return "not held"
    longest = sorted(holders.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{name} for {human_duration(left)}" for name, left in longest[:_SHOWN])
    more = len(longest) - _SHOWN
    return f"held by {named}" + (f" and {more:,} more" if more > 0 else "")
