"""Options and arguments that choose a class registry, classes, and versions."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import click

from offload.classes.registry import ClassRegistry
from offload.classes.versions import PointerNames, name_of
from offload.cli.options import runtime_of
from offload.errors import UnknownClass

_logger = logging.getLogger("offload.classes")


def check_tag(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Return *value*, which may be None. Raises BadParameter if it isn't a valid tag."""
    try:
        if value is not None:
            PointerNames("any").tag(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc
    return value


prefix = click.option(
    "--hash",
    "prefix",
    metavar="HASH",
    help="Choose a version by at least the first 8 digits of its hash.",
)
tag = click.option("--tag", callback=check_tag, help="Choose the version with this tag.")
name = click.argument("name")
names = click.argument("names", nargs=-1, metavar="[NAME]...")


def check_one(prefix: str | None, tag: str | None) -> None:
    """Raise UsageError if both a hash and a tag are given."""
    if prefix is not None and tag is not None:
        raise click.UsageError("use --hash or --tag, not both")


def version(registry: ClassRegistry, name: str, prefix: str | None, tag: str | None) -> str:
    """Return the full hash for a hash prefix or tag; by default, the latest version's.

    Signatures aren't verified.

    Raises UnknownClass, VersionMissing.
    """
    if prefix is not None:
        return registry.find_hash(name, prefix)
    return registry.find_hash(name, tag or "latest", tags=True)


def registry_of(ctx: click.Context) -> ClassRegistry:
    """Return the class registry of the app that ``celery -A`` names."""
    if not _logger.handlers:
        _logger.addHandler(logging.NullHandler())  # commands print refusals themselves
    return runtime_of(ctx).classes


def registered(registry: ClassRegistry, names: Iterable[str]) -> list[Any]:
    """Return the classes and functions registered in this process under *names*, full or short;
    all if no names are given. Raises UnknownClass.
    """
    here = {name_of(obj): obj for obj in registry.registered}
    return [here[_full(here, name)] for name in dict.fromkeys(names)] or list(here.values())


def _full(here: Iterable[str], name: str) -> str:
    if name in here:
        return name
    found = sorted(each for each in here if each.rpartition(".")[2] == name)
    if len(found) > 1:
        raise UnknownClass(f"{name!r} is ambiguous: {' or '.join(found)}")
    if not found:
        raise UnknownClass(
            f"{name!r} is not registered in this process: call ClassRegistry.register in a module "
            "that the app imports"
        )
    return found[0]
