"""``celery offload exporter``: serve statistics to Prometheus."""

from __future__ import annotations

import threading

import click

from offload.cli.context import runtime_of
from offload.cli.output import print_json

__all__ = ("exporter",)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9540, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--tasks",
    default=200,
    show_default=True,
    type=click.IntRange(min=0),
    help="Number of tasks with their own label: those with the most bytes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the address as JSON.")
@click.pass_context
def exporter(ctx: click.Context, host: str, port: int, tasks: int, as_json: bool) -> None:
    """Serve the statistics of all processes to Prometheus, at /metrics.

    The exporter reads the store at every scrape, so one per store is enough.
    """
    from offload.metrics.prometheus import serve
    from offload.metrics.storage import sums_of

    runtime = runtime_of(ctx)
    sums_of(runtime.store)
    port, server = serve(runtime.store, host, port, tasks=tasks)
    url = f"http://{host}:{port}/metrics"
    if as_json:
        print_json({"url": url, "store": runtime.store.url})
    else:
        click.echo(f"{url} serves the statistics of {runtime.store.url}")
    try:
        threading.Event().wait()
    finally:
        server.shutdown()
