"""``celery offload memo …``: list remembered results, and forget them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Any

import click

from offload.cli.options import as_json, runtime_of
from offload.cli.output import Column, print_json, print_json_list, print_pages
from offload.errors import OffloadError
from offload.hooks.runtime import Runtime
from offload.memo.records import (
    Record,
    forget_record,
    forget_records,
    list_records,
    open_result,
)
from offload.text import (
    human_duration,
    human_size,
    human_time,
    human_time_saved,
    printable,
    some,
)

_PAGE = 100  # rows to print at a time
_SHORT = 12  # characters of a key to show
_LEAST = 8  # minimum length of a key prefix
_COLUMNS = (
    Column("KEY", _SHORT),
    Column("AGE", 9, number=True),
    Column("EXPIRES IN", 10, number=True),
    Column("TOOK", 9, number=True),
    Column("SIZE", 9, number=True),
    Column("SCOPE", 10),
    Column("TASK"),
)


@click.group()
def memo() -> None:
    """List and forget remembered results."""


@memo.command("list")
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(min=1), help="List at most this many results.")
@as_json
@click.pass_context
def list_(ctx: click.Context, prefix: str, limit: int | None, as_json: bool) -> None:
    """List remembered results of tasks and functions whose names start with PREFIX.

    TOOK is how long the computation took, which each hit saves. SIZE is the size of the result, or
    "-" if it was signed with another secret, so no call can get it. SCOPE is the
    app's name, or memo_scope if set; callers in the same scope share results.
    """
    runtime = runtime_of(ctx)
    found = islice(_current(runtime, prefix), limit)
    if as_json:
        print_json_list(_document(runtime, record) for record in found)
        return
    first = list(islice(found, _PAGE))
    if not first:
        of_task = f" of {prefix}…" if prefix else ""
        click.echo(printable(f"no remembered results{of_task} in {runtime.store.url}"))
        return
    print_pages((_row(runtime, record) for record in chain(first, found)), _COLUMNS, _PAGE)


def _current(runtime: Runtime, prefix: str = "") -> Iterator[Record]:
    now = time.time()
    return (record for record in list_records(runtime.store, prefix) if record.until > now)


def _row(runtime: Runtime, record: Record) -> list[str]:
    now = time.time()
    return [
        record.key[:_SHORT],
        human_duration(max(0.0, now - record.created)),
        human_duration(max(0.0, record.until - now)),
        human_time_saved(record.seconds),
        human_size(_size(runtime, record)),
        record.scope.removeprefix("="),
        record.task,
    ]


def _document(runtime: Runtime, record: Record) -> dict[str, Any]:
    return {
        "task": record.task,
        "scope": record.scope,
        "key": record.key,
        "created": human_time(record.created),
        "expires": human_time(record.until),
        "seconds": record.seconds,
        "bytes": _size(runtime, record),
    }


def _size(runtime: Runtime, record: Record) -> int | None:
    with suppress(OffloadError):
        return open_result(runtime.content, record).size
    return None


@memo.command()
@click.argument("tasks", nargs=-1, metavar="[TASK...]")
@click.option("--key", "keys", multiple=True, help="Forget the one result with this key.")
@click.option("--all", "everything", is_flag=True, help="Forget the results of all tasks.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; needs --yes.")
@click.pass_context
def forget(
    ctx: click.Context,
    tasks: tuple[str, ...],
    keys: tuple[str, ...],
    everything: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Forget remembered results: those of tasks, those with a --key, or --all.

    The next call computes its result again. A result that is being computed now goes to the
    callers that wait for it, but isn't remembered. For --key, the first 8 characters are enough.

    The exit code is 1 if a task or key had no remembered result.
    """
    if as_json and not yes:
        raise click.UsageError("--json can't prompt: add --yes")
    if everything == bool(tasks or keys):
        raise click.UsageError("name tasks, --key, or --all")
    runtime = runtime_of(ctx)
    records = {key: _find(runtime, key) for key in dict.fromkeys(keys)}
    if not yes:
        what = "all results" if everything else f"the results of {some([*tasks, *keys])}"
        click.confirm(printable(f"Forget {what} in {runtime.store.url}?"), abort=True)
    if everything:
        forgotten = {"all": forget_records(runtime.content, None, runtime.grace)}
    else:
        forgotten = {
            task: forget_records(runtime.content, task, runtime.grace)
            for task in dict.fromkeys(tasks)
        }
        for key, record in records.items():
            forgotten[key] = int(
                record is not None and forget_record(runtime.content, record.name, runtime.grace)
            )
    if as_json:
        print_json({"forgotten": forgotten})
    else:
        for name, count in forgotten.items():
            click.echo(printable(f"{name}: forgot {count:,} result{'s' * (count != 1)}"))
    if not everything and 0 in forgotten.values():
        ctx.exit(1)


def _find(runtime: Runtime, key: str) -> Record | None:
    """Return the record whose key starts with *key*."""
    if len(key) < _LEAST:
        raise click.UsageError(f"{key!r} has fewer than {_LEAST} characters of a key")
    found = [record for record in list_records(runtime.store) if record.key.startswith(key)]
    if len(found) > 1:
        raise click.UsageError(f"{len(found)} results have keys that start with {key!r}")
    return found[0] if found else None
