"""Gauges for the exporter that aren't counters: the state of stores and workers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from offload.doctor.store import TierState, inspect_store
from offload.forks import start_thread
from offload.hooks.runtime import Runtime
from offload.inspect import Finding
from offload.inspect.config_drift import config_drift
from offload.inspect.workers import State, Workers, ask_workers, this_process

logger = logging.getLogger(__name__)

_EVERY = 15.0  # seconds between two checks
_KEPT = 120.0  # seconds to serve the last check if the next one hangs
_PROBLEMS = ("warning", "error")


class Gauges:
    """Checks the stores and workers of an app in a thread, as long as the exporter is scraped.

    A scrape never waits: it gets the results of the last check, or nothing before the first one.

    Args:
        every: seconds between two checks.
    """

    def __init__(self, runtime: Runtime, *, every: float = _EVERY) -> None:
        self._runtime = runtime
        self._every = every
        self._checked: tuple[float, list[Metric]] = (0.0, [])  # when, by time.monotonic
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges of the last check. Prometheus's client calls this for each scrape."""
        self._wanted.set()
        with self._lock:
            if self._thread is None:
                self._thread = start_thread(self._run, "offload-exporter-health")
        at, found = self._checked
        if time.monotonic() - at < _KEPT:
            yield from found

    def close(self) -> None:
        """Stop the thread after its current check."""
        self._stopped.set()
        self._wanted.set()

    def _run(self) -> None:
        while self._wanted.wait() and not self._stopped.is_set():
            self._wanted.clear()
            try:
                self._checked = (time.monotonic(), self._check())
            except Exception:  # the next check may succeed
                logger.warning("cannot check stores and workers", exc_info=True)
            self._stopped.wait(self._every)

    def _check(self) -> list[Metric]:
        runtime = self._runtime
        tiers = inspect_store(runtime.store, runtime.settings.tier_sizes).tiers
        asked = ask_workers(runtime.app)
        drift = config_drift(this_process(runtime), asked)
        return [*_of_stores(tiers), *_of_workers(asked, list(drift))]


def _of_stores(tiers: Sequence[TierState]) -> Iterator[Metric]:
    available = GaugeMetricFamily(
        "offload_store_available", "Whether a store is available.", labels=["store"]
    )
    labels = ["store", "server"]
    used = GaugeMetricFamily(
        "offload_store_used_bytes", "Memory or space in use, by all users.", labels=labels
    )
    limit = GaugeMetricFamily(
        "offload_store_limit_bytes",
        "Redis's maxmemory, or the size of the file system.",
        labels=labels,
    )
    evicted = CounterMetricFamily(
        "offload_store_evicted_keys",
        "Keys that a Redis server evicted because its memory was full.",
        labels=labels,
    )
    for tier in tiers:
        available.add_metric([tier.url], 0 if tier.error else 1)
        for each in tier.capacity:
            for family, number in ((used, each.used), (limit, each.limit), (evicted, each.evicted)):
                if number is not None:
                    family.add_metric([tier.url, each.server], number)
    yield from (available, used, limit, evicted)


def _of_workers(asked: Workers, drift: Sequence[Finding]) -> Iterator[Metric]:
    workers = GaugeMetricFamily(
        "offload_workers",
        "Workers online by state: connected; without offload; silent (no reply); or unreadable.",
        labels=["state"],
    )
    for state in get_args(State):
        workers.add_metric([state], sum(each.state == state for each in asked.workers))
    problems = GaugeMetricFamily(
        "offload_worker_problems",
        "Findings about workers: configuration drift, and workers without offload.",
        labels=["level"],
    )
    for level in _PROBLEMS:
        problems.add_metric([level], sum(each.level == level for each in drift))
    yield from (workers, problems)
