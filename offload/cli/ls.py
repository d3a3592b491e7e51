"""``celery offload ls``: what is in the store."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import click

from offload.cli.context import hook_of
from offload.cli.named import lasts, short
from offload.cli.output import print_json_list, printable
from offload.content.looking import Glance, glance
from offload.digest import Digest
from offload.errors import ConfigurationError
from offload.ref import human_size
from offload.serializers.preview import kind
from offload.stores.base import BlobInfo, Store
from offload.stores.looking import Accounted, accounted

__all__ = ("ls",)

_PAGE = 500  # blobs that are looked at, and printed, together
_SIZES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}


class _Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,3})?) ?([kmgt]?)b?", str(value).lower())
        if match is None:
            self.fail(f"{value!r} is no size as 500kB or 1.5MB", param, ctx)
        return int(float(match[1]) * _SIZES[match[2]])


@dataclass(frozen=True)
class _Row:
    """What is known of a blob. (Slots, as of many at once a few are kept.)"""

    __slots__ = ("digest", "holders", "size", "ttl")
    digest: Digest
    size: int
    ttl: float
    holders: int | None


@dataclass(frozen=True)
class _Listed:
    row: _Row
    seen: Glance | None
    shared: int | None


@click.command()
@click.option(
    "--sort",
    type=click.Choice(["size", "expiry", "holders"]),
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
    account = accounted(store)
    if account is None and (held is not None or sort == "holders"):
        raise ConfigurationError(
            f"{store.url} keeps no account of who needs what: Redis does, also as the first of "
            "several stores",
            store=store.url,
        )
    rows = _rows(store, account)
    if larger_than is not None:
        rows = (row for row in rows if row.size > larger_than)
    if held is not None:
        rows = (row for row in rows if bool(row.holders) is held)
    rows = _sorted(rows, sort, limit)
    counted = _shared(store) if shared else None
    listed = _looked(store, rows, counted, quick=quick)
    if as_json:
        print_json_list(map(_json, listed))
    else:
        _print(listed, store, counted is not None)


def _rows(store: Store, account: Accounted | None) -> Iterator[_Row]:
    infos: Iterator[BlobInfo] = store.blobs.scan()
    while some := list(islice(infos, _PAGE)):
        counts: Iterable[int | None] = [None] * len(some)
        if account is not None:
            counts = account.count_holders([info.digest for info in some])
        for info, count in zip(some, counts, strict=True):
            yield _Row(info.digest, info.size, info.ttl, count)


def _sorted(rows: Iterable[_Row], sort: str | None, limit: int | None) -> Iterator[_Row]:
    if sort is None:
        return islice(rows, limit)
    keys: dict[str, Callable[[_Row], tuple[float, str]]] = {
        "size": lambda row: (-row.size, row.digest),
        "expiry": lambda row: (row.ttl, row.digest),
        "holders": lambda row: (-(row.holders or 0), row.digest),
    }
    key = keys[sort]
    return iter(sorted(rows, key=key) if limit is None else heapq.nsmallest(limit, rows, key))


def _shared(store: Store) -> Counter[bytes]:
    """Return in how many values each chunk is that is in more than one."""
    once: Counter[bytes] = Counter()
    for each in _glances(store, (info.digest for info in store.blobs.scan())):
        if each is not None and each.root is not None:
            once.update({_key(chunk.digest) for chunk in each.root.chunks})
    return once


def _key(digest: Digest) -> bytes:
    return bytes.fromhex(digest[3:27])  # of 100,000 digests no two are alike in that


def _glances(store: Store, digests: Iterable[Digest]) -> Iterator[Glance | None]:
    rest = iter(digests)
    while some := list(islice(rest, _PAGE)):
        yield from glance(store, some)


def _looked(
    store: Store, rows: Iterator[_Row], counted: Counter[bytes] | None, *, quick: bool
) -> Iterator[_Listed]:
    while some := list(islice(rows, _PAGE)):
        seen: Iterable[Glance | None] = [None] * len(some)
        if not quick:
            seen = glance(store, [row.digest for row in some])
        for row, each in zip(some, seen, strict=True):
            shared = None
            if counted is not None and (each is None or each.root is None):
                shared = counted[_key(row.digest)]
            yield _Listed(row, each, shared)


def _print(listed: Iterable[_Listed], store: Store, shared: bool) -> None:
    rows = iter(listed)
    first = list(islice(rows, _PAGE))
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
            lines.append("  ".join([*padded, printable(_kind(seen))]).rstrip())
        click.echo("\n".join(lines))
        first, lines = list(islice(rows, _PAGE)), []


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _kind(seen: Glance | None) -> str:
    if seen is None:
        return "-"
    root = seen.root
    if root is None:
        return "chunk" if seen.known else "?"
    chunks = f", {len(root.chunks)} chunks" if root.chunks else ""
    return f"{_type(seen)} ({root.serializer[:40]}, {human_size(root.size)}{chunks})"


def _type(seen: Glance) -> str:
    root = seen.root
    return "" if root is None else kind(root.serializer, root.head, root.body)


def _json(each: _Listed) -> dict[str, Any]:
    row, seen = each.row, each.seen
    root = seen.root if seen is not None else None
    return {
        "digest": row.digest,
        "bytes": row.size,
        "ttl": row.ttl if math.isfinite(row.ttl) else None,
        "age": seen.seen.age if seen is not None else None,
        "holders": row.holders,
        "shared": each.shared,
        "kind": None if seen is None or not seen.known else "chunk" if root is None else "root",
        "type": None if seen is None or root is None else _type(seen),
        "serializer": root and root.serializer,
        "value_bytes": root and root.size,
        "chunks": None if root is None else len(root.chunks),
    }
