"""``celery offload ls``: list the blobs in the store."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import click

from offload.cli.context import runtime_of
from offload.cli.output import Column, print_json_list, print_pages
from offload.cli.progress import Progress
from offload.inspect.blobs import (
    PAGE,
    SORTS,
    Listed,
    Sharing,
    describe_kind,
    listed,
    ordered,
    rows,
    tracked_holds,
)
from offload.stores.protocols import Store
from offload.text import (
    human_duration,
    human_number,
    human_size,
    parse_size,
    printable,
    short_digest,
)

__all__ = ("ls",)


class _Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        size = parse_size(str(value))
        if size is None:
            self.fail(f"expected a size such as 500kB or 1.5MB, not {value!r}", param, ctx)
        return size


@click.command()
@click.option(
    "--sort",
    type=click.Choice(list(SORTS)),
    help="Largest first, first to expire first, or most holders first.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="List at most N blobs.")
@click.option(
    "--larger-than", type=_Size(), metavar="SIZE", help="Only blobs larger than 500kB, 1MB…"
)
@click.option(
    "--held/--unheld", default=None, help="Only blobs that are held, or only those that aren't."
)
@click.option("--shared", is_flag=True, help="Count the values that contain each chunk.")
@click.option("--quick", is_flag=True, help="Skip reading blobs to find their kind.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
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
    """List the blobs in the store: values, and the chunks of large ones.

    SIZE is the stored size, after compression. KIND comes from a blob's first bytes, which
    aren't verified. HOLDERS counts the messages, results, pins, and puts that need the blob; it is
    "-" in stores that don't track holds (files, S3). SHARED counts the values that contain a
    chunk, which requires reading all values first.

    With --sort but without --limit, everything is read before the first line is printed.
    """
    store = runtime_of(ctx).store
    tracked_holds(store, required=sort == "holders")
    reads_all_first = sort is not None or shared
    with Progress(f"reading {store.url}", shown=reads_all_first) as progress:
        found = rows(store, larger_than=larger_than, held=held)
        if sort is not None:
            found = progress.over(found, lambda row: row.size)
        chosen = ordered(found, sort, limit)
        sharing = None
        if shared:
            sharing = Sharing(store, seen=lambda info: progress.step(info.size))
    blobs = listed(store, chosen, sharing, quick=quick)
    if as_json:
        print_json_list(each.as_json() for each in blobs)
    else:
        _print(blobs, store, shared)


def _print(blobs: Iterable[Listed], store: Store, shared: bool) -> None:
    rest = iter(blobs)
    first = list(islice(rest, PAGE))
    if not first:
        click.echo(f"no such blobs in {printable(store.url)}")
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
