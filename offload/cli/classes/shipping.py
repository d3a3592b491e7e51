"""Commands that push, load, verify, tag, and delete versions, and create keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from offload.classes.keys import generate
from offload.classes.keys import signer as signer_with
from offload.classes.listing import ClassSummary
from offload.classes.policy import OFF
from offload.classes.registry import ClassRegistry
from offload.classes.versions import Record, name_of
from offload.cli.classes import options
from offload.cli.options import as_json
from offload.cli.output import print_json, print_rows
from offload.errors import CodeError, CodeRefused, ConfigurationError, OffloadError, VersionMissing
from offload.inspect.classes import (
    describe_version,
    format_version,
    short_hash,
    signature_json,
    signer_of,
)
from offload.text import human_count, human_size, printable

_KEYS = """\
# Only where classes are pushed or sent. Anyone with this key decides what workers run.
offload_signing_key = "{private}"

# Where classes are loaded. You can list more keys, each with a name and an expiry date:
# {{"key": "ed25519:...", "name": "ci", "until": "2027-06-30"}}. The default name is {key}.
offload_verify_keys = ["{public}"]

# In both places.
offload_code = "signed"\
"""

_DAY = 86400.0  # seconds


@click.command()
@options.names
@click.option(
    "--no-latest", is_flag=True, help="Store the versions without making them the latest."
)
@as_json
@click.pass_context
def push(ctx: click.Context, names: tuple[str, ...], no_latest: bool, as_json: bool) -> None:
    """Push registered classes: all of them, or those named.

    Each becomes the latest version under its name. Pushing an unchanged class again changes
    nothing; all unchanged classes share one round trip.
    """
    registry = options.registry_of(ctx)
    objs = {name_of(obj): obj for obj in options.registered(registry, names)}
    changed = _persisted(registry, objs) if no_latest else set(registry.push_all(objs.values()))
    hashes = {name: registry.get_class_hash(obj) for name, obj in objs.items()}
    old, new = ("present", "stored") if no_latest else ("synced", "pushed")
    if as_json:
        print_json(
            [
                {"name": name, "hash": code_hash, "changed": name in changed}
                for name, code_hash in hashes.items()
            ]
        )
    elif objs:
        print_rows(
            (
                (new if name in changed else old, format_version(name, hashes[name]))
                for name in objs
            ),
            levels=True,
        )
    else:
        click.echo("no registered classes")


def _persisted(registry: ClassRegistry, objs: dict[str, Any]) -> set[str]:
    """Store versions without making them the latest; return the names of new ones."""
    stored = {(each.name, code_hash) for each in registry.listing() for code_hash in each.versions}
    return {name for name, obj in objs.items() if (name, registry.persist_class(obj)) not in stored}


@click.command()
@options.name
@click.argument("tag", callback=options.check_tag)
@click.argument("prefix", metavar="HASH")
@as_json
@click.pass_context
def tag(ctx: click.Context, name: str, tag: str, prefix: str, as_json: bool) -> None:
    """Tag a version, moving the tag from any other version.

    HASH is at least the first 8 digits of the version's hash.
    """
    registry = options.registry_of(ctx)
    name = registry.full_name(name)
    code_hash = registry.find_hash(name, prefix)
    was = _tagged_hash(registry, name, tag)
    registry.tag(name, tag, code_hash)
    _print(name, tag, code_hash, was, as_json=as_json)


@click.command()
@options.name
@click.argument("prefix", metavar="HASH")
@as_json
@click.pass_context
def rollback(ctx: click.Context, name: str, prefix: str, as_json: bool) -> None:
    """Make a stored version the latest.

    HASH is at least the first 8 digits of the version's hash.
    """
    registry = options.registry_of(ctx)
    name = registry.full_name(name)
    code_hash = registry.find_hash(name, prefix)
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
    help="Choose a time longer than any message waits, and longer than any process keeps sending "
    "an old version.",
)
@click.option("--dry-run", "-n", is_flag=True, help="Delete nothing; only report.")
@as_json
@click.pass_context
def prune(ctx: click.Context, older_than: float, dry_run: bool, as_json: bool) -> None:
    """Delete old versions that are neither the latest, tagged, nor needed by others.

    Without this command, every version ever sent is kept.
    """
    registry = options.registry_of(ctx)
    found = registry.prune(older_than * _DAY, dry_run=dry_run)
    if as_json:
        print_json(
            [{"name": each.class_name, "hash": each.hash, "size": each.size} for each in found]
        )
        return
    for each in found:
        click.echo(printable(format_version(each.class_name, each.hash)))
    did = "would delete" if dry_run else "deleted"
    click.echo(f"{registry.store.url}: {did} {human_count(len(found), 'version')}")


@click.command()
@options.name
@options.prefix
@options.tag
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the pickle to this file without loading it, regardless of the settings.",
)
@as_json
@click.pass_context
def pull(
    ctx: click.Context,
    name: str,
    prefix: str | None,
    tag: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Load a class as a worker would, and print who signed it.

    This process's settings decide whether the class may be loaded. It is read from the store even
    if this process defines it, and its hash is verified after loading.
    """
    options.check_one(prefix, tag)
    registry = options.registry_of(ctx)
    name = registry.full_name(name)
    if output is not None:
        record = _write(registry, name, options.version(registry, name, prefix, tag), output)
        did = f"wrote {human_size(record.size)} of {format_version(name, record.hash)} to {output}"
    else:
        record = _load(registry, name, prefix, tag)
        did = f"loaded {record.kind} {format_version(name, record.hash)}"
    if as_json:
        print_json({**describe_version(registry.policy, record), "output": output and str(output)})
    else:
        click.echo(printable(f"{did}, signed by {signer_of(registry.policy, record)}"))


def _write(registry: ClassRegistry, name: str, code_hash: str, output: Path) -> Record:
    stored = registry.stored(name, code_hash)
    try:
        output.write_bytes(stored.content)
    except OSError as exc:
        raise click.FileError(str(output), exc.strerror) from exc
    return stored.record


def _load(registry: ClassRegistry, name: str, prefix: str | None, tag: str | None) -> Record:
    code_hash = None if prefix is None else registry.find_hash(name, prefix)
    record = registry.check(name, code_hash, tag=tag)
    try:
        registry.recover_class(name, record.hash)
    except OffloadError:
        raise
    except Exception as exc:  # raised by the loaded code
        what = f"{format_version(name, record.hash)} cannot be loaded: {type(exc).__name__}: {exc}"
        raise click.ClickException(what) from exc
    return record


@click.command()
@options.names
@click.option("--all-versions", is_flag=True, help="Verify all versions and tags.")
@as_json
@click.pass_context
def verify(ctx: click.Context, names: tuple[str, ...], all_versions: bool, as_json: bool) -> None:
    """Verify signatures and digests of the latest versions, without running any code.

    Uses this process's settings. The exit code is 1 if a version is refused.
    """
    registry = options.registry_of(ctx)
    if registry.policy.mode == OFF:
        raise ConfigurationError(
            "offload_code is 'off', so nothing would be loaded: use the workers' settings"
        )
    wanted = {registry.full_name(name) for name in names}
    found = {each.name: each for each in registry.listing()}
    for name in wanted - found.keys():
        registry.versions(name)  # raises UnknownClass
    verified = [
        _verify(registry, name, what, which)
        for name in sorted(wanted or found)
        for what, which in _versions_of(found[name], all_versions=all_versions)
    ]
    refused = sum(each.record is None for each in verified)
    ok = len(verified) - refused
    if as_json:
        listed = [_json(registry, each) for each in verified]
        print_json({"ok": ok, "refused": refused, "versions": listed})
    else:
        print_rows((_row(registry, each) for each in verified), levels=True)
        click.echo(f"{ok} ok, {refused} refused")
    if refused:
        ctx.exit(1)


@dataclass(frozen=True)
class _Verified:
    """Result of verifying one version.

    Attributes:
        what: ``latest``, ``tag …``, or ``version``.
        record: None if it was refused.
        why: the reason for refusing it, else None.
    """

    name: str
    what: str
    hash: str | None
    record: Record | None
    why: str | None


def _versions_of(
    listed: ClassSummary, *, all_versions: bool
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each version to verify, as its label and the arguments of `ClassRegistry.verify`."""
    if listed.latest is not None or listed.broken:
        yield "latest", {}
    if all_versions:
        yield from ((f"tag {tag}", {"tag": tag}) for tag in sorted(listed.tags))
        yield from (("version", {"code_hash": each}) for each in sorted(listed.versions))


def _verify(registry: ClassRegistry, name: str, what: str, which: dict[str, str]) -> _Verified:
    try:
        record = registry.verify(name, **which)
    except (CodeRefused, VersionMissing) as exc:
        return _Verified(name, what, which.get("code_hash"), None, str(exc))
    return _Verified(name, what, record.hash, record, None)


def _row(registry: ClassRegistry, verified: _Verified) -> tuple[str, ...]:
    shown = format_version(verified.name, verified.hash) if verified.hash else verified.name
    if verified.record is None:
        return "refused", shown, verified.what, verified.why or ""
    return "ok", shown, verified.what, f"signed by {signer_of(registry.policy, verified.record)}"


def _json(registry: ClassRegistry, verified: _Verified) -> dict[str, Any]:
    record = verified.record
    return {
        "name": verified.name,
        "what": verified.what,
        "hash": verified.hash,
        "ok": record is not None,
        "signature": record and signature_json(registry.policy, record),
        "why": verified.why,
    }


@click.command()
@as_json
def keygen(as_json: bool) -> None:
    """Create a key pair, and print it as settings.

    The keys aren't saved anywhere. Needs offload[signing].
    """
    private, public = generate()
    key = signer_with(private).id
    if as_json:
        print_json({"private": private, "public": public, "key": key})
        return
    click.echo(_KEYS.format(private=private, public=public, key=key))
