"""``celery offload doctor``: find problems and suggest remedies."""

from __future__ import annotations

from collections.abc import Iterator

import click

from offload.cli.findings import exit_code, listed, print_counts, print_finding
from offload.cli.options import as_json, runtime_of
from offload.cli.output import print_json
from offload.doctor import Examined, examine
from offload.errors import OffloadError
from offload.inspect.findings import Finding

__all__ = ("doctor",)


@click.command()
@as_json
@click.option(
    "--workers/--no-workers",
    default=True,
    show_default=True,
    help="Compare the settings of running workers with this process.",
)
@click.option(
    "--timeout",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.1, 60),
    help="Seconds to wait for workers' replies.",
)
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, workers: bool, timeout: float) -> None:
    """Find present and future problems, and say what to do about them.

    Run it where publishers and workers run, with their settings. It writes a few bytes to the
    store and deletes them. The exit code is 1 if it finds an error, 69 if a store is unavailable,
    and 0 if there are only warnings and infos.
    """
    found = []
    for examined in _examined(ctx, timeout if workers else None):
        found.append(examined)
        if not as_json:
            print_finding(examined)
    if as_json:
        print_json(listed(found))
    else:
        print_counts(found)
    ctx.exit(exit_code(found))


def _examined(ctx: click.Context, workers: float | None) -> Iterator[Examined]:
    try:
        runtime = runtime_of(ctx)
    except OffloadError:
        raise
    except Exception as exc:  # raised by the app's own modules
        what = f"the app's modules cannot be imported: {type(exc).__name__}: {exc}"
        yield Examined("app", Finding("error", what))
        return
    yield from examine(runtime, workers=workers)
