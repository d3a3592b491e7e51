"""``celery offload types``: list the types that a process carries."""

from __future__ import annotations

from dataclasses import asdict

import click

from offload.cli.options import as_json, runtime_of
from offload.cli.output import Column, print_json, print_rows
from offload.inspect.types import carried_types

__all__ = ("types",)

_COLUMNS = (Column("NAME"), Column("VERSION"), Column("HOW"), Column("TYPE"))


@click.command()
@as_json
@click.pass_context
def types(ctx: click.Context, as_json: bool) -> None:
    """List the types that this process carries, besides Python's own, arrays, and frames.

    These are the registered ones, those of packages that the app may import, and those that
    kombu's register_type added to Celery's JSON.
    """
    runtime = runtime_of(ctx)
    _ = runtime.settings  # lists types, too
    found = carried_types(runtime.accepted)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    rows = [
        (
            each.name,
            "" if each.version is None else str(each.version),
            each.how,
            each.type or each.advice,
        )
        for each in found
    ]
    print_rows(rows, _COLUMNS)
