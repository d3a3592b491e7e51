"""Prometheus exporter for the counters. Needs the extra ``prometheus``.

Each scrape reads the counters of all processes from the store, so one exporter per store is enough.
Conventions: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from socketserver import ThreadingMixIn
from typing import Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from offload.errors import ConfigurationError, StoreError
from offload.forks import start_thread
from offload.metrics.connections import BACKLOG, PATIENCE, most_connections
from offload.metrics.counters import BOUNDS, NAMES, OF_STORE, OTHER, SIZES, STEPS
from offload.metrics.otel import name_of
from offload.metrics.report import Figures, by_store, report
from offload.metrics.storage import sums_of
from offload.stores.capabilities import tiers_of
from offload.stores.protocols import Store
from offload.text import url_host

try:
    from prometheus_client import CollectorRegistry, make_wsgi_app
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
except ImportError as exc:
    raise ConfigurationError(
        'the exporter needs prometheus_client: pip install "offload[prometheus]"'
    ) from exc

logger = logging.getLogger(__name__)

_ERRORS = "errors_"
_IN_MILLISECONDS = "memo_milliseconds_saved"


def metric_of(name: str) -> str:
    """Return a counter's metric: ``offload_stored_bytes_total`` for ``bytes_stored``."""
    unit = "_seconds" if name == _IN_MILLISECONDS else ""
    return name_of(name).replace(".", "_") + f"{unit}_total"


class Collector:
    """Prometheus collector that reads *store* at every scrape.

    Args:
        tasks: number of tasks that get their own label: those with the most bytes. The others
            share one. A task keeps its label, because moving its counts to another label would
            make its counters fall.
    """

    def __init__(self, store: Store, *, tasks: int = 200) -> None:
        self._store = store
        self._tasks = tasks
        self._named: set[str] = set()
        self._lock = threading.Lock()  # scrapes may overlap

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; while the store is unavailable, only ``offload_up`` with 0."""
        begun = time.perf_counter()
        try:
            found = report(sums_of(self._store))
        except StoreError as exc:
            logger.warning("cannot export statistics: %s", exc)
            yield _gauge("offload_up", "Whether the store is available.", 0)
            return
        yield _gauge("offload_up", "Whether the store is available.", 1)
        tasks = self._labelled(found.tasks)
        yield from _counters(tasks)
        yield from _histograms(tasks)
        every = by_store(found, self._store)
        stores = {tier.url: every[tier.url] for tier in tiers_of(self._store)}  # current tiers only
        yield from _store_counters(stores)
        yield _store_histogram(stores)
        yield _gauge(
            "offload_scrape_duration_seconds",
            "Duration of reading the store.",
            time.perf_counter() - begun,
        )

    def _labelled(self, tasks: Mapping[str, Figures]) -> dict[str, Figures]:
        ordered = sorted(tasks, key=lambda task: (-tasks[task]["bytes_offloaded"], task))
        with self._lock:
            self._named &= tasks.keys()  # tasks removed by a reset free their labels
            new = [task for task in ordered if task not in self._named and task != OTHER]
            self._named.update(new[: self._tasks - len(self._named)])
            kept = {task: tasks[task] for task in ordered if task in self._named}
        rest = [tasks[task].counts for task in ordered if task not in kept]
        return {**kept, OTHER: Figures.sum(rest)} if rest else kept


class Collects(Protocol):
    """Yields metrics at every scrape."""

    def collect(self) -> Iterable[Metric]: ...


def serve(
    store: Store, host: str, port: int, *, tasks: int = 200, more: Iterable[Collects] = ()
) -> tuple[int, Server]:
    """Serve ``/metrics`` from a thread; return the port and the server.

    Args:
        host, port: the address to listen on; port 0 picks a free one.
        tasks: see `Collector`.
        more: further collectors.

    Raises ConfigurationError if it can't listen there.
    """
    registry = CollectorRegistry()
    for each in (Collector(store, tasks=tasks), *more):
        registry.register(each)  # type: ignore[arg-type,unused-ignore]
    try:
        server = Server((host, port))
    except OSError as exc:
        raise ConfigurationError(f"can't listen on {url_host(host)}:{port}: {exc}") from exc
    server.set_app(make_wsgi_app(registry))
    start_thread(server.serve_forever, "offload-exporter")
    return int(server.server_port), server


class _Handler(WSGIRequestHandler):
    """Handles one request; drops a client that doesn't read the response."""

    timeout = PATIENCE

    def parse_request(self) -> bool:
        """Read the request headers, and note that they have arrived."""
        has_arrived = super().parse_request()
        if isinstance(self.server, Server):
            self.server.heard(self.connection)
        return has_arrived

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing."""


class Server(ThreadingMixIn, WSGIServer):
    """HTTP server with one thread per connection, for a bounded number of connections.

    It drops an idle connection after `PATIENCE` seconds, or earlier to admit another client.
    """

    daemon_threads = True
    request_queue_size = BACKLOG

    def __init__(self, address: tuple[str, int]) -> None:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = found[0][0]
        place: Any = found[0][4]
        self._places = threading.BoundedSemaphore(most_connections())
        self._silent: dict[socket.socket, float] = {}  # idle since; oldest first
        self._lock = threading.Lock()
        super().__init__(place[:2], _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in its own thread, dropping the longest idle one if there are many."""
        if not self._places.acquire(blocking=False):
            self._drop(1)
            if not self._places.acquire(timeout=1.0):
                super().shutdown_request(request)
                return
        with self._lock:
            self._silent[request] = time.monotonic()
        super().process_request(request, client_address)

    def heard(self, request: socket.socket) -> None:
        """Note that a request's headers have arrived."""
        with self._lock:
            self._silent.pop(request, None)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection after it was served."""
        self.heard(request)
        super().shutdown_request(request)
        self._places.release()

    def service_actions(self) -> None:
        """Drop connections that have been idle for too long."""
        limit = time.monotonic() - PATIENCE
        with self._lock:
            late = sum(since < limit for since in self._silent.values())
        self._drop(late)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log a request that failed, usually because the client disconnected."""
        logger.debug("a scrape by %s failed", client_address)

    def _drop(self, number: int) -> None:
        """Close the longest idle connections, which ends their threads."""
        with self._lock:
            for request in list(islice(self._silent, number)):
                del self._silent[request]
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counters(tasks: Mapping[str, Figures]) -> Iterator[Metric]:
    for name, text in NAMES.items():
        if name.startswith(_ERRORS):
            continue
        family = CounterMetricFamily(metric_of(name), f"{text.capitalize()}.", labels=["task"])
        for task, figures in tasks.items():
            in_seconds = name == _IN_MILLISECONDS
            family.add_metric([task], figures.memo_seconds_saved if in_seconds else figures[name])
        yield family
    errors = CounterMetricFamily(
        "offload_errors_total",
        "Values that could not be stored or fetched.",
        labels=["task", "kind"],
    )
    for task, figures in tasks.items():
        for name in NAMES:
            if name.startswith(_ERRORS):
                errors.add_metric([task, name.removeprefix(_ERRORS)], figures[name])
    yield errors


def _histograms(tasks: Mapping[str, Figures]) -> Iterator[Metric]:
    family = HistogramMetricFamily(
        "offload_step_duration_seconds",
        "Duration of a step for one value: " + "; ".join(f"{s}, {t}" for s, t in STEPS.items()),
        labels=["task", "step"],
    )
    _add_times(family, tasks, STEPS)
    yield family
    yield _sizes(tasks)


def _sizes(tasks: Mapping[str, Figures]) -> Metric:
    family = HistogramMetricFamily(
        "offload_value_size_bytes",
        "Serialized bytes of a value sent by reference, or observed (mode observe).",
        labels=["task"],
    )
    # A class ends below a power of two; a bucket includes its bound.
    bounds = [*(str(float(bound - 1)) for bound in SIZES), "+Inf"]
    for task, figures in tasks.items():
        values, size = figures.sizes()
        if values[-1]:
            family.add_metric([task], list(zip(bounds, values, strict=True)), sum_value=size)
    return family


def _store_counters(stores: Mapping[str, Figures]) -> Iterator[Metric]:
    for name in ("blobs_uploaded", "bytes_stored", "bytes_fetched", "calls_failed"):
        metric = metric_of(name).replace("offload_", "offload_store_", 1)
        family = CounterMetricFamily(metric, f"By store: {OF_STORE[name]}.", labels=["store"])
        for url, figures in stores.items():
            family.add_metric([url], figures[name])
        yield family


def _store_histogram(stores: Mapping[str, Figures]) -> Metric:
    family = HistogramMetricFamily(
        "offload_store_step_duration_seconds",
        "Duration of writing (upload) or reading (fetch) the blobs of one value in a store.",
        labels=["store", "step"],
    )
    _add_times(family, stores, ("upload", "fetch"))
    return family


def _add_times(
    family: HistogramMetricFamily, things: Mapping[str, Figures], steps: Iterable[str]
) -> None:
    bounds = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
    for label, figures in things.items():
        for step in steps:
            times = figures.times(step)
            if times[-1]:
                buckets = list(zip(bounds, times, strict=True))
                family.add_metric([label, step], buckets, sum_value=figures.seconds(step))
