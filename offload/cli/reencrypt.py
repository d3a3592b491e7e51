"""``celery offload reencrypt``: move what is kept to the first encryption key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from offload.cli.options import as_json, runtime_of
from offload.cli.output import Progress, print_json
from offload.errors import ConfigurationError
from offload.text import human_count, human_duration, human_size, printable

if TYPE_CHECKING:
    from offload.reencrypt import Report

__all__ = ("reencrypt",)


@click.command()
@click.option("--dry-run", "-n", is_flag=True, help="Move nothing; only count by key.")
@as_json
@click.pass_context
def reencrypt(ctx: click.Context, dry_run: bool, as_json: bool) -> None:
    """Move catalogs, pins, and shipped classes to the first encryption key.

    Messages and results keep their old keys until they expire. The report counts the blobs under
    each key: once there are none under an old key, it can be removed. May run at any time, and
    again after it was interrupted. Exits with 1 if something couldn't be moved.
    """
    try:
        from offload.reencrypt import reencrypt as move
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "cryptography":
            raise
        raise ConfigurationError(
            'encryption needs cryptography: pip install "offload[encryption]"'
        ) from exc
    runtime = runtime_of(ctx)
    with Progress(f"reencrypting {runtime.store.url}") as progress:
        report = move(
            runtime.content,
            grace=runtime.grace,
            dry_run=dry_run,
            seen=lambda _: progress.step(0),
        )
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    if report.failed:
        ctx.exit(1)


def _print(report: Report) -> None:
    from offload.reencrypt import PLAIN

    moved = ", ".join(f"{count} {kind}s" for kind, count in sorted(report.moved.items()) if count)
    click.echo(f"moved to key {report.key}: {moved or 'nothing'}")
    for failure in report.failures:
        click.echo(printable(f"not moved: {failure}"))
    for key, under in sorted(report.keys.items()):
        name = "not encrypted" if key == PLAIN else f"key {key}"
        until = human_duration(under.ttl) if under.ttl < 1e9 else "never"
        last = "" if key == report.key else f"; the last expires: {until}"
        click.echo(f"{name}: {human_count(under.count, 'blob')}, {human_size(under.size)}{last}")
    if not report.failed and not report.others:
        click.echo(
            "no blob is under another key: once the messages sent before the first key "
            "came are done, the others can be removed"
        )
