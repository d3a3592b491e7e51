"""``celery offload ls``: what is in the store."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import click

from offload.catalog.listing import (
    PAGE,
    SORTS,
    Listed,
    account_of,
    listed,
    ordered,
    rows,
    told_kind,
)
from offload.catalog.naming import short
from offload.catalog.sharing import Sharing
from offload.catalog.sizes import read_size
from offload.catalog.times import lasts
from offload.cli.context import hook_of
from offload.cli.output import print_json_list, printable
from offload.ref import human_size
from offload.stores.base import Store

__all__ = ("ls",)


class _Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        size = read_size(str(value))
        if size is None:
            self.fail(f"{value!r} is no size as 500kB or 1.5MB", param, ctx)
        return size


@click.command()
@click.option(
    "--sort",
    type=click.Choice(list(SORTS)),
    help="Largest first, first to end first, most needed first.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="No more than so many.")
@click.option("--larger-than", type=_Size(), metavar="SIZE", help="Of more than 500kB, 1MB …")
@click.option("--held/--unheld", default=None, help="Only what somebody holds, or nobody.")
@click.option("--shared", is_flag=True, help="Count in how many values each chunk is.")
@click.option("--quick", is_flag=True, help="Do not look into blobs for what they are.")
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

    SIZE is what is stored, after compression. What a blob is is told by its beginning, which
    nobody verified. HOLDERS are messages, results, pins and puts that need it; where no account is
    kept of them (files, S3), it is "-". SHARED is in how many values a chunk is, for which all
    values are looked at first.

    Sorted without --limit, all are read before the first is printed.
    """
    store = hook_of(ctx).store
    account_of(store, needed=sort == "holders")
    chosen = ordered(rows(store, larger_than=larger_than, held=held), sort, limit)
    found = listed(store, chosen, Sharing(store) if shared else None, quick=quick)
    if as_json:
        print_json_list(each.as_json() for each in found)
    else:
        _print(found, store, shared)


def _print(found: Iterable[Listed], store: Store, shared: bool) -> None:
    rest = iter(found)
    first = list(islice(rest, PAGE))
    if not first:
        click.echo(f"{printable(store.url)} has no such blobs")
        return
    aged = any(each.seen is not None and each.seen.seen.age is not None for each in first)
    columns = [("DIGEST", 15), ("SIZE", 9), ("ENDS IN", 9), ("HOLDERS", 7)]
    columns += [("AGE", 9)] * aged + [("SHARED", 6)] * shared
    lines = ["  ".join([*(f"{name:<{width}}" for name, width in columns), "KIND"])]
    while first:
        for each in first:
            row, seen = each.row, each.seen
            texts = [short(row.digest), human_size(row.size), lasts(row.ttl), _count(row.holders)]
            texts += [lasts(seen.seen.age if seen else None)] * aged
            texts += [_count(each.shared)] * shared
            padded = [f"{text:<{width}}" for text, (_, width) in zip(texts, columns, strict=True)]
            lines.append("  ".join([*padded, printable(told_kind(each))]).rstrip())
        click.echo("\n".join(lines))
        first, lines = list(islice(rest, PAGE)), []


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
