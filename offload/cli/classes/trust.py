"""Commands that load and verify shipped classes, and create keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from offload.classes.keys import generate
from offload.classes.keys import signer as signer_with
from offload.classes.listing import Listed
from offload.classes.policy import OFF
from offload.classes.registry import ClassRegistry
from offload.classes.versions import Record
from offload.cli.classes import asked
from offload.cli.output import print_json, print_rows
from offload.errors import CodeRefused, ConfigurationError, OffloadError, VersionMissing
from offload.inspect.classes import describe_version, format_version, signature_json, signer_of
from offload.text import human_size, printable

__all__ = ("keygen", "pull", "verify")

_KEYS = """\
# Only where classes are pushed or sent. Whoever has this key decides what workers run.
offload_signing_key = "{private}"

# Where classes are loaded. You can list more keys, each with a name and an expiry date:
# {{"key": "ed25519:...", "name": "ci", "until": "2027-06-30"}}. The default name is {key}.
offload_verify_keys = ["{public}"]

# In both.
offload_code = "signed"\
"""


@click.command()
@asked.name
@asked.begin
@asked.tag
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the pickle to this file without loading it, whatever the settings allow.",
)
@asked.as_json
@click.pass_context
def pull(
    ctx: click.Context,
    name: str,
    begin: str | None,
    tag: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Load a class as a worker would, and print who signed it.

    This process's settings decide whether it may be loaded. The class is always read from the
    store, even if this process defines it, and its hash is verified after loading.
    """
    asked.check_one(begin, tag)
    registry = asked.registry_of(ctx)
    name = registry.full_name(name)
    if output is not None:
        record = _write(registry, name, asked.version(registry, name, begin, tag), output)
        did = f"wrote {human_size(record.size)} of {format_version(name, record.hash)} to {output}"
    else:
        record = _load(registry, name, begin, tag)
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


def _load(registry: ClassRegistry, name: str, begin: str | None, tag: str | None) -> Record:
    code_hash = None if begin is None else registry.find_hash(name, begin)
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
@asked.names
@click.option("--all-versions", is_flag=True, help="Verify all versions and tags.")
@asked.as_json
@click.pass_context
def verify(ctx: click.Context, names: tuple[str, ...], all_versions: bool, as_json: bool) -> None:
    """Verify signatures and digests, without running any code.

    Verifies the latest versions, with this process's settings. The exit code is 1 if a version
    is refused.
    """
    registry = asked.registry_of(ctx)
    if registry.policy.mode == OFF:
        raise ConfigurationError(
            "offload_code is 'off', so nothing would be loaded: use the settings of workers"
        )
    wanted = {registry.full_name(name) for name in names}
    found = {each.name: each for each in registry.listing()}
    for name in wanted - found.keys():
        registry.versions(name)  # raises UnknownClass
    verified = [
        _verify(registry, name, what, asked_for)
        for name in sorted(wanted or found)
        for what, asked_for in _asked_for(found[name], all_versions=all_versions)
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


def _asked_for(listed: Listed, *, all_versions: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each version to verify, as its label and the arguments of `ClassRegistry.verify`."""
    if listed.latest is not None or listed.broken:
        yield "latest", {}
    if all_versions:
        yield from ((f"tag {tag}", {"tag": tag}) for tag in sorted(listed.tags))
        yield from (("version", {"code_hash": each}) for each in sorted(listed.versions))


def _verify(registry: ClassRegistry, name: str, what: str, asked_for: dict[str, str]) -> _Verified:
    try:
        record = registry.verify(name, **asked_for)
    except (CodeRefused, VersionMissing) as exc:
        return _Verified(name, what, asked_for.get("code_hash"), None, str(exc))
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
@asked.as_json
def keygen(as_json: bool) -> None:
    """Create a pair of keys, and print it in the form of settings.

    The keys are stored nowhere. Needs offload[signing].
    """
    private, public = generate()
    key = signer_with(private).id
    if as_json:
        print_json({"private": private, "public": public, "key": key})
        return
    click.echo(_KEYS.format(private=private, public=public, key=key))
