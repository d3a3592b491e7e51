"""Read-only commands: ``list``, ``show``, ``status``, and ``diff``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import click

from offload.classes.listing import OUT_OF_SYNC, SYNCED
from offload.classes.registry import ClassRegistry
from offload.classes.versions import Record, name_of
from offload.cli.classes import options
from offload.cli.options import as_json
from offload.cli.output import Column, print_json, print_rows
from offload.errors import CodeError, CodeRefused
from offload.inspect.classes import (
    ClassState,
    classes_of,
    describe_version,
    format_version,
    short_hash,
    signature_json,
    signer_of,
)
from offload.text import human_size, human_time, printable

_COLUMNS = (
    Column("NAME", breaks=True),
    Column("LATEST"),
    Column("VERSIONS", number=True),
    Column("STATUS"),
    Column("PYTHON"),
    Column("SIGNED BY"),
)
_REFUSED = "refused"


@click.command("list")
@as_json
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List all classes and functions in the store.

    STATUS compares the latest version with the class that this process registered under the same
    name. Only signatures are verified; see `verify`.
    """
    registry = options.registry_of(ctx)
    found = [each for each in classes_of(registry) if each.is_stored]
    if as_json:
        print_json([_listed_json(registry, each) for each in found])
    elif found:
        print_rows(map(_listed_row, found), _COLUMNS)
    else:
        click.echo(f"{registry.store.url} has no classes")


def _listed_row(listed: ClassState) -> list[str]:
    latest = listed.latest
    row = [
        listed.name,
        "broken" if listed.broken else "-",
        str(len(listed.versions)),
        listed.status or "-",
    ]
    if latest is None:
        return [*row, "-", "-"]
    row[1] = short_hash(latest.hash)
    return [*row, latest.python, listed.signer]


def _listed_json(registry: ClassRegistry, listed: ClassState) -> dict[str, object]:
    latest = listed.latest
    return {
        "name": listed.name,
        "latest": latest and latest.hash,
        "versions": sorted(listed.versions),
        "tags": sorted(listed.tags),
        "status": listed.status or None,
        "kind": latest and latest.kind,
        "python": latest and latest.python,
        "signature": latest and signature_json(registry.policy, latest),
        "broken": listed.broken or None,
    }


@click.command()
@options.name
@options.prefix
@options.tag
@as_json
@click.pass_context
def show(ctx: click.Context, name: str, prefix: str | None, tag: str | None, as_json: bool) -> None:
    """Show a version of a class, and list all versions.

    The default is the latest version. If none was made the latest, as with classes that were only
    sent in messages, it is the newest one. "loads here" says whether a process with these settings
    would load the version and its dependencies. No code runs.
    """
    options.check_one(prefix, tag)
    registry = options.registry_of(ctx)
    name = registry.full_name(name)
    versions, tags = registry.versions(name), registry.tags(name)
    if prefix is None and tag is None and "latest" not in tags:
        prefix = versions[-1].hash
    record = registry.stored(name, options.version(registry, name, prefix, tag)).record
    why_not = _why_not(registry, name, None if prefix is None else record.hash, tag)
    if as_json:
        print_json(
            {
                **describe_version(registry.policy, record),
                "tags": _tags_of(tags, record.hash),
                "loads_here": not why_not,
                "why_not": why_not or None,
                "versions": [
                    {"hash": each.hash, "created": human_time(each.created), "python": each.python}
                    for each in versions
                ],
            }
        )
    else:
        _print(registry, record, versions, tags, why_not)


def _why_not(registry: ClassRegistry, name: str, code_hash: str | None, tag: str | None) -> str:
    try:
        registry.check(name, code_hash, tag=tag)
    except CodeError as exc:
        return str(exc)
    return ""


def _tags_of(tags: Mapping[str, str], code_hash: str) -> list[str]:
    return sorted(tag for tag, its in tags.items() if its == code_hash)


def _print(
    registry: ClassRegistry,
    record: Record,
    versions: list[Record],
    tags: Mapping[str, str],
    why_not: str,
) -> None:
    source = f", with {human_size(record.source_size)} of source" if record.source else ""
    print_rows(
        [
            ("name", record.class_name),
            ("kind", record.kind),
            ("hash", short_hash(record.hash)),
            ("tags", ", ".join(_tags_of(tags, record.hash)) or "-"),
            ("python", record.python),
            ("created", human_time(record.created)),
            ("size", human_size(record.size) + source),
            ("needs", ", ".join(format_version(*need) for need in record.needs) or "-"),
            ("signed by", signer_of(registry.policy, record)),
            ("loads here", f"no: {why_not}" if why_not else "yes"),
        ]
    )
    click.echo("versions")
    print_rows(
        (
            "",
            short_hash(each.hash),
            human_time(each.created),
            each.python,
            ", ".join(_tags_of(tags, each.hash)),
        )
        for each in versions
    )


@click.command()
@options.names
@as_json
@click.pass_context
def status(ctx: click.Context, names: tuple[str, ...], as_json: bool) -> None:
    """Compare registered classes with the store.

    The exit code is 1 if a class is out of sync or untracked, or if its version in the store is
    refused. With names, only those classes are compared.
    """
    registry = options.registry_of(ctx)
    found = _compared(registry, options.registered(registry, names))
    counted = Counter(each["status"] for each in found)
    if as_json:
        not_synced = len(found) - counted[SYNCED]
        print_json({"synced": counted[SYNCED], "not_synced": not_synced, "classes": found})
    elif found:
        rows = (
            (each["status"], format_version(each["name"], each["hash"]), _why(each))
            for each in found
        )
        print_rows(rows, levels=True)
        click.echo(", ".join(f"{count} {status}" for status, count in sorted(counted.items())))
    else:
        click.echo("no registered classes")
    if counted[SYNCED] < len(found):
        ctx.exit(1)


def _compared(registry: ClassRegistry, objs: list[Any]) -> list[dict[str, Any]]:
    try:
        sync_statuses = registry.sync_statuses(objs)
    except CodeRefused as exc:
        if len(objs) > 1:  # compare one by one to find out which are refused
            return [each for obj in objs for each in _compared(registry, [obj])]
        own = {"name": name_of(objs[0]), "hash": registry.get_class_hash(objs[0])}
        return [{**own, "status": _REFUSED, "latest": None, "why": str(exc)}]
    return [
        {
            "name": each.name,
            "hash": each.hash,
            "status": each.status,
            "latest": each.latest and each.latest.hash,
            "why": None,
        }
        for each in sync_statuses
    ]


def _why(found: dict[str, Any]) -> str:
    if found["status"] == OUT_OF_SYNC:
        return f"latest is {short_hash(found['latest'])}"
    return found["why"] or ""


@click.command()
@options.name
@click.argument("a")
@click.argument("b")
@as_json
@click.pass_context
def diff(ctx: click.Context, name: str, a: str, b: str, as_json: bool) -> None:
    """Show how the source changed from version A to version B.

    A and B are tags, "latest", or at least the first 8 digits of a hash.
    """
    registry = options.registry_of(ctx)
    name = registry.full_name(name)
    old, new = (registry.find_hash(name, each, tags=True) for each in (a, b))
    text = registry.diff(name, old, new)
    if as_json:
        print_json({"name": name, "a": old, "b": new, "diff": text})
        return
    for line in text.splitlines():
        click.echo(printable(line.replace("\t", "    ")))
    if not text and old != new:
        click.echo(
            "the sources are identical; values, defaults, or Python versions differ", err=True
        )
