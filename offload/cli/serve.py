"""``celery offload dashboard`` and ``exporter``: serve statistics over HTTP."""

from __future__ import annotations

import ipaddress
import threading

import click

from offload.cli.options import runtime_of
from offload.cli.output import print_json
from offload.errors import ConfigurationError
from offload.text import url_host


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9541, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--basic-auth",
    metavar="USER:PASSWORD[,…]",
    envvar="OFFLOAD_DASHBOARD_BASIC_AUTH",
    show_envvar=True,
    help="Users who may view the dashboard.",
)
@click.option(
    "--token",
    envvar="OFFLOAD_DASHBOARD_TOKEN",
    show_envvar=True,
    help="Grants access when opened once as ?token=… or sent as a bearer token.",
)
@click.option("--allow-delete", is_flag=True, help="Allow deleting blobs.")
@click.option(
    "--allow-host", multiple=True, metavar="NAME", help="Accept requests for this host name."
)
@click.option(
    "--url-prefix", default="", metavar="PATH", help="Serve below this path, such as /offload."
)
@click.option("--json", "as_json", is_flag=True, help="Print the address as JSON.")
@click.pass_context
def dashboard(
    ctx: click.Context,
    host: str,
    port: int,
    basic_auth: str | None,
    token: str | None,
    allow_delete: bool,
    allow_host: tuple[str, ...],
    url_prefix: str,
    as_json: bool,
) -> None:
    """Serve a web dashboard with savings, stored values, and problems.

    By default it listens on localhost only. Other addresses require --basic-auth or --token. Set
    these as environment variables, which other users of the machine can't see, and put a TLS proxy
    in front. The dashboard is read-only unless you pass --allow-delete.
    """
    runtime = runtime_of(ctx)  # without an app, nothing else matters, such as missing packages
    from offload.dashboard import Basic, Token
    from offload.dashboard import dashboard as make_dashboard
    from offload.dashboard.security import LOOPBACK
    from offload.dashboard.serving import serve

    if basic_auth and token:
        raise click.UsageError("use --basic-auth or --token, not both")
    auth: Basic | Token | None = None
    if basic_auth:
        auth = Basic(dict(_user(each.strip()) for each in basic_auth.split(",")))
    elif token:
        auth = Token(token)
    if auth is None and not _loopback(host):
        raise ConfigurationError(
            f"anyone who can reach {host} could view everything: set OFFLOAD_DASHBOARD_TOKEN or "
            "OFFLOAD_DASHBOARD_BASIC_AUTH"
        )
    hosts = [*LOOPBACK, *allow_host] if allow_host else None
    app = make_dashboard(runtime.app, auth=auth, allow_delete=allow_delete, hosts=hosts)

    def started(url: str) -> None:
        if as_json:
            print_json({"url": url})
        else:
            click.echo(f"{url} is open")

    serve(app, host, port, prefix=url_prefix, started=started)


def _user(text: str) -> tuple[str, str]:
    name, _, password = text.partition(":")
    return name, password


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9540, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--tasks",
    default=200,
    show_default=True,
    type=click.IntRange(min=0),
    help="Number of tasks that get their own label: those with the most bytes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the address as JSON.")
@click.pass_context
def exporter(ctx: click.Context, host: str, port: int, tasks: int, as_json: bool) -> None:
    """Serve statistics to Prometheus at /metrics.

    The exporter reads the store at every scrape, so one exporter per store is enough. While it is
    being scraped, it also checks the stores and queries the workers every 15 seconds.
    """
    runtime = runtime_of(ctx)  # without an app, nothing else matters, such as missing packages
    from offload.metrics.prometheus import serve
    from offload.metrics.storage import sums_of

    sums_of(runtime.store)
    from offload.doctor.gauges import Gauges  # needs the package that the import above checks

    port, server = serve(runtime.store, host, port, tasks=tasks, more=[Gauges(runtime)])
    url = f"http://{url_host(host)}:{port}/metrics"
    if as_json:
        print_json({"url": url, "store": runtime.store.url})
    else:
        click.echo(f"{url} serves the statistics of {runtime.store.url}")
    try:
        threading.Event().wait()
    finally:
        server.shutdown()
