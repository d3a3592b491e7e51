"""Commands that change the store: ``push``, ``tag``, ``rollback``, and ``prune``."""

from __future__ import annotations

from typing import Any

import click

from offload.classes.registry import ClassRegistry
from offload.classes.versions import name_of
from offload.cli.classes import asked
from offload.cli.output import print_json, print_rows
from offload.errors import CodeError
from offload.inspect.classes import format_version, short_hash
from offload.text import printable

__all__ = ("prune", "push", "rollback", "tag")


_DAY = 86400.0  # seconds


@click.command()
@asked.names
@click.option(
    "--no-latest", is_flag=True, help="Store the versions without making them the latest."
)
@asked.as_json
@click.pass_context
def push(ctx: click.Context, names: tuple[str, ...], no_latest: bool, as_json: bool) -> None:
    """Push all registered classes, or the named ones.

    Each becomes the latest version under its name. Pushing again changes nothing; all classes that
    are up to date share one round trip.
    """
    registry = asked.registry_of(ctx)
    objs = {name_of(obj): obj for obj in asked.registered(registry, names)}
    changed = _persisted(registry, objs) if no_latest else set(registry.push_all(objs.values()))
    hashes = {name: registry.get_class_hash(obj) for name, obj in objs.items()}
    words = ("present", "stored") if no_latest else ("synced", "pushed")
    if as_json:
        print_json(
            [
                {"name": name, "hash": code_hash, "changed": name in changed}
                for name, code_hash in hashes.items()
            ]
        )
    elif objs:
        print_rows(
            ((words[name in changed], format_version(name, hashes[name])) for name in objs),
            levels=True,
        )
    else:
        click.echo("no registered classes")


def _persisted(registry: ClassRegistry, objs: dict[str, Any]) -> set[str]:
    """Store versions; return the names of those that weren't in the store."""
    stored = {(each.name, code_hash) for each in registry.listing() for code_hash in each.versions}
    return {name for name, obj in objs.items() if (name, registry.persist_class(obj)) not in stored}


@click.command()
@asked.name
@click.argument("tag", callback=asked.check_tag)
@click.argument("begin", metavar="HASH")
@asked.as_json
@click.pass_context
def tag(ctx: click.Context, name: str, tag: str, begin: str, as_json: bool) -> None:
    """Tag a version, moving the tag from any other version.

    HASH is at least the first 8 digits of the version's hash.
    """
    registry = asked.registry_of(ctx)
    name = registry.full_name(name)
    code_hash = registry.find_hash(name, begin)
    was = _tagged_hash(registry, name, tag)
    registry.tag(name, tag, code_hash)
    _print(name, tag, code_hash, was, as_json=as_json)


@click.command()
@asked.name
@click.argument("begin", metavar="HASH")
@asked.as_json
@click.pass_context
def rollback(ctx: click.Context, name: str, begin: str, as_json: bool) -> None:
    """Make a stored version the latest.

    HASH is at least the first 8 digits of the version's hash.
    """
    registry = asked.registry_of(ctx)
    name = registry.full_name(name)
    code_hash = registry.find_hash(name, begin)
    was = _tagged_hash(registry, name, "latest")
    registry.rollback(name, code_hash)
    _print(name, "latest", code_hash, was, as_json=as_json)


def _tagged_hash(registry: ClassRegistry, name: str, tag: str) -> str | None:
    """Return the hash that a tag names; None if there is none, or if it is unreadable."""
    try:
        return registry.tags(name).get(tag)
    except CodeError:
        return None


def _print(name: str, tag: str, code_hash: str, was: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "tag": tag, "hash": code_hash, "was": was})
        return
    before = "" if was is None else "unchanged" if was == code_hash else f"was {short_hash(was)}"
    print_rows([(tag, format_version(name, code_hash), before)])


@click.command()
@click.option(
    "--older-than",
    type=click.FloatRange(min=0, min_open=True),
    required=True,
    metavar="DAYS",
    help="Longer than any message waits, and than any process runs that sends old versions.",
)
@click.option("--dry-run", "-n", is_flag=True, help="Delete nothing; only report.")
@asked.as_json
@click.pass_context
def prune(ctx: click.Context, older_than: float, dry_run: bool, as_json: bool) -> None:
    """Delete old versions, except those that are the latest, are tagged, or are needed by others.

    Every version that was ever sent is kept until this command deletes it.
    """
    registry = asked.registry_of(ctx)
    found = registry.prune(older_than * _DAY, dry_run=dry_run)
    if as_json:
        print_json(
            [{"name": each.class_name, "hash": each.hash, "size": each.size} for each in found]
        )
        return
    for each in found:
        click.echo(printable(format_version(each.class_name, each.hash)))
    did = "would delete" if dry_run else "deleted"
    click.echo(f"{registry.store.url}: {did} {len(found)} versions")
