"""``celery offload ls`` and ``rm``: list and delete blobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice

import click

from offload.cli.options import SIZE, as_json, runtime_of
from offload.cli.output import (
    Column,
    Progress,
    print_json,
    print_json_list,
    print_pages,
    print_rows,
)
from offload.digest import Digest
from offload.errors import InvalidRef
from offload.inspect.blobs import (
    PAGE,
    SORTS,
    Listed,
    Sharing,
    describe_kind,
    digest_prefix,
    find_digest,
    holders_of,
    listed,
    ordered,
    remove_blobs,
    rows,
    stored_sizes,
    tracked_holds,
)
from offload.stores.protocols import Store
from offload.text import human_duration, human_number, human_size, printable, short_digest

_SHOWN = 5  # holders named in a row


@click.command()
@click.option(
    "--sort",
    type=click.Choice(list(SORTS)),
    help="Order: largest, first to expire, or most holders first.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="List at most N blobs.")
@click.option("--larger-than", type=SIZE, metavar="SIZE", help="Only blobs larger than 500kB, 1MB…")
@click.option(
    "--held/--unheld", default=None, help="Only blobs with holders, or only those without."
)
@click.option("--shared", is_flag=True, help="Count the values that contain each chunk.")
@click.option("--quick", is_flag=True, help="Don't read blobs to find their kind.")
@as_json
@click.pass_context
def ls(
    ctx: click.Context,
    sort: str | None,
    limit: int | None,
    larger_than: int | None,
    held: bool | None,
    shared: bool,
    quick: bool,
    as_json: bool,
) -> None:
    """List the blobs in the store.

    Blobs are values, and the chunks of large ones.

    SIZE is the stored size, after compression. KIND comes from a blob's first bytes, which
    aren't verified. HOLDERS counts the messages, results, pins, and puts that need the blob; it is
    "-" in stores that don't track holds (files, S3). SHARED counts the values that contain a
    chunk, which requires reading all values first.

    With --sort but without --limit, everything is read before the first line is printed.
    """
    runtime = runtime_of(ctx)
    store, cipher = runtime.store, runtime.content.cipher
    tracked_holds(store, required=sort == "holders")
    reads_all_first = sort is not None or shared
    with Progress(f"reading {store.url}", shown=reads_all_first) as progress:
        found = rows(store, larger_than=larger_than, held=held)
        if sort is not None:
            found = progress.over(found, lambda row: row.size)
        chosen = ordered(found, sort, limit)
        sharing = None
        if shared:
            sharing = Sharing(store, seen=lambda info: progress.step(info.size), cipher=cipher)
    blobs = listed(store, chosen, sharing, quick=quick, cipher=cipher)
    if as_json:
        print_json_list(each.as_json() for each in blobs)
    else:
        _print(blobs, store, shared)


def _print(blobs: Iterable[Listed], store: Store, shared: bool) -> None:
    rest = iter(blobs)
    first = list(islice(rest, PAGE))
    if not first:
        click.echo(f"no matching blobs in {printable(store.url)}")
        return
    aged = any(each.seen is not None and each.seen.seen.age is not None for each in first)
    columns = [
        Column("DIGEST", 15),
        Column("SIZE", 9, number=True),
        Column("EXPIRES IN", 10, number=True),
        Column("HOLDERS", 7, number=True),
        *[Column("AGE", 9, number=True)] * aged,
        *[Column("SHARED", 6, number=True)] * shared,
        Column("KIND"),
    ]
    print_pages((_row(each, aged, shared) for each in chain(first, rest)), columns, PAGE)


def _row(each: Listed, aged: bool, shared: bool) -> list[str]:
    row, seen = each.row, each.seen
    return [
        short_digest(row.digest),
        human_size(row.size),
        human_duration(row.ttl),
        human_number(row.holders),
        *[human_duration(seen.seen.age if seen else None)] * aged,
        *[human_number(each.shared)] * shared,
        describe_kind(each.seen),
    ]


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
