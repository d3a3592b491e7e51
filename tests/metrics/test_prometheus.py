"""The metrics for Prometheus."""

from __future__ import annotations

import os
import subprocess
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from offload import Counters
from offload.doctor import gauges
from offload.doctor.gauges import Gauges
from offload.inspect import Finding
from offload.inspect.workers import Worker, Workers
from offload.metrics.counters import NAMES, STEPS
from offload.metrics.prometheus import metric_of, serve
from offload.metrics.recorder import Recorder
from offload.stores import open_store
from offload.stores.memory import MemoryStore
from offload.stores.tiered import TieredStore
from tests.support.catalog_calls import COUNTED, use_catalog
from tests.support.memo_calls import call_memo_tasks
from tests.support.processes import wait_until
from tests.support.prometheus import program, prometheus
from tests.support.servers import HOST, redis_server
from tests.support.wire import make_wire


def fill(store, tasks=("shop.total", "shop.report"), amount=5):
    """Count something for every task, with increasing bytes."""
    counters = Counters()
    recorder = Recorder(counters, 1)
    recorder.attach(store)
    for number, task in enumerate(tasks):
        with counters.about(task, "rows"):
            counters.add(**dict.fromkeys(NAMES, amount + number))
            for step in STEPS:
                counters.took(step, 0.003)
            counters.sized(100_000, 0)
    recorder.write()


@pytest.fixture
def exported():
    servers = []

    def start(store, **options):
        port, server = serve(store, HOST, 0, **options)
        servers.append(server)
        return port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def scrape(port):
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics") as answer:
        return answer.read().decode()


def samples(port):
    """Return all samples by name and label values."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(scrape(port))
        for sample in family.samples
    }


def test_later_counts_are_scraped(exported, tmp_path):
    """Counts written after a scrape are in the next one."""
    url = f"file://{tmp_path}"
    port = exported(open_store(url))
    name = "offload_seen_values_total", ("task", "shop.total")
    for expected in (5, 10):
        fill(open_store(url), tasks=("shop.total",))
        assert samples(port)[name] == expected


def test_stores_have_samples_of_their_own(exported):
    """Each current tier has samples of its own; a single store has those of the total."""
    url = "memory://"
    store = MemoryStore()
    fill(store)
    found = samples(exported(store))
    assert found["offload_store_stored_bytes_total", ("store", url)] == 11
    assert found["offload_store_calls_failed_total", ("store", url)] == 22
    labels = (("le", "0.004"), ("step", "fetch"), ("store", url))
    assert found[("offload_store_step_duration_seconds_bucket", *labels)] == 2

    tiers = TieredStore(MemoryStore("one"), [MemoryStore("two")])
    counters = Counters()
    recorder = Recorder(counters, 1)
    recorder.attach(tiers)
    tiers.count_by_tier(counters)
    counters.of_store("memory://two", bytes_stored=7)
    counters.of_store("memory://gone", bytes_stored=7)
    recorder.write()
    found = samples(exported(tiers))
    report = {
        key[1][1]: n for key, n in found.items() if key[0] == "offload_store_stored_bytes_total"
    }
    assert report == {"memory://one": 0, "memory://two": 7}


def test_every_counter_is_exported_under_its_task(exported):
    """Each counter and histogram of a task is exported with its task's label and its count."""
    store = MemoryStore()
    fill(store)
    found = samples(exported(store))
    assert found["offload_up",] == 1
    for name in NAMES:
        if name.startswith("errors_"):
            key = ("offload_errors_total", ("kind", name[7:]), ("task", "shop.report"))
        else:
            key = (metric_of(name), ("task", "shop.report"))
        assert found[key] == (0.006 if name == "memo_milliseconds_saved" else 6), name
    for step in STEPS:
        labels = (("step", step), ("task", "shop.total"))
        metric = "offload_step_duration_seconds"
        assert found[(f"{metric}_count", *labels)] == 1
        assert found[(f"{metric}_sum", *labels)] == pytest.approx(0.003)
        assert found[(f"{metric}_bucket", ("le", "0.001"), *labels)] == 0
        assert found[(f"{metric}_bucket", ("le", "0.004"), *labels)] == 1


def test_sizes_are_a_histogram_of_bytes(exported):
    """A bucket counts the values whose size is at most its bound; sum and count are exact."""
    store = MemoryStore()
    counters = Counters()
    recorder = Recorder(counters, 1)
    recorder.attach(store)
    sizes = (0, 1023, 1024, 70_000, (4 << 20) - 1, 4 << 20, 9 << 20)
    with counters.about("shop.total", "rows"):
        for size in sizes:
            counters.offloaded(size, size // 2, whole=False)
    with counters.about("shop.observed"):
        counters.sized(5000, 0)
    recorder.write()
    found = samples(exported(store))
    metric, task = "offload_value_size_bytes", ("task", "shop.total")
    buckets = {
        float(labels[0][1]): count
        for (name, *labels), count in found.items()
        if name == f"{metric}_bucket" and labels[-1] == task
    }
    assert len(buckets) == 14
    assert buckets == {bound: sum(size <= bound for size in sizes) for bound in buckets}
    assert found[f"{metric}_sum", task] == sum(sizes)
    assert found[f"{metric}_count", task] == buckets[float("inf")] == len(sizes)
    assert found[f"{metric}_sum", ("task", "shop.observed")] == 5000


def test_tasks_are_bounded_and_none_is_omitted(exported):
    """The tasks with the most bytes have labels, and others are counted together."""
    store = MemoryStore()
    fill(store, [f"task {number}" for number in range(10)])
    found = samples(exported(store, tasks=3))
    seen = {
        dict(key[1:])["task"]: v
        for key, v in found.items()
        if key[0] == "offload_seen_values_total"
    }
    assert set(seen) == {"task 9", "task 8", "task 7", "(other)"}
    assert sum(seen.values()) == sum(range(5, 15))


def test_a_task_keeps_its_label(exported):
    """A task keeps its label, so that no counter decreases when others have more bytes."""
    store = MemoryStore()
    fill(store, ["first", "second"])
    port = exported(store, tasks=1)
    before = samples(port)
    fill(store, ["first"], amount=1000)
    after = samples(port)
    assert set(before) == set(after)
    key = ("offload_offloaded_bytes_total", ("task", "second"))
    assert (before[key], after[key]) == (6, 6)
    assert after["offload_offloaded_bytes_total", ("task", "(other)")] == 1005


def test_hostile_names_are_escaped(exported):
    """Quotes, newlines, and the like in a task's name neither break nor forge a line."""
    name = 'x"} 1\noffload_forged_total 9\n{a="\\'
    store = MemoryStore()
    fill(store, [name])
    found = samples(exported(store))
    assert found["offload_seen_values_total", ("task", name)] == 5
    assert not [key for key in found if key[0] == "offload_forged_total"]


def test_the_use_of_the_catalog_is_exported(exported, redis):
    """Each counter of the catalog is exported, by task, with its counted number."""
    url = f"{redis.url}?prefix=catalog-exported-{os.getpid()}-{os.urandom(3).hex()}"
    wire = make_wire(store=url)
    use_catalog(wire)
    wire.hook._runtime.recorder.write()
    found = samples(exported(wire.hook.store))
    for name, number in COUNTED.items():
        metric = f"offload_catalog_{name}_total"
        assert sum(n for (each, *_), n in found.items() if each == metric) == number, name
    assert found["offload_catalog_saves_total", ("task", "catalog.train")] == 1
    assert found["offload_catalog_late_total", ("task", "catalog.score")] == 2


def test_what_memo_saves_is_exported(exported, redis, monkeypatch):
    """Each task has the hits, computations, waits, and seconds saved of its real calls."""
    url = f"{redis.url}?prefix=exported-{os.getpid()}-{os.urandom(3).hex()}"
    wire = make_wire(store=url, watch=False)
    call_memo_tasks(wire, monkeypatch)
    wire.app._offload.recorder.write()
    found = samples(exported(wire.hook.store))
    for task, expected in {
        "memo.total": {"hits": 2, "misses": 3, "waits": 1, "saved_seconds": 2.5, "fenced": 1},
        "memo.report": {"hits": 2, "misses": 1, "waits": 0, "saved_seconds": 2.5, "fenced": 0},
        "memo.odd": {"hits": 0, "misses": 0, "saved_seconds": 0, "uncached": 1},
    }.items():
        for name, number in expected.items():
            assert found[f"offload_memo_{name}_total", ("task", task)] == number, (task, name)


def test_a_store_becomes_unavailable_and_comes_back(exported):
    """`offload_up` is 0 while the store is down, without other samples, and 1 once it's back."""
    with redis_server() as server:
        store = open_store(f"{server.url}?socket_timeout=1")
        fill(store)
        port = exported(store)
        assert samples(port)["offload_up",] == 1
        server.stop()
        assert samples(port) == {("offload_up",): 0}
        server.start()
        assert samples(port)["offload_up",] == 1


def test_promtool_accepts_the_metrics(exported):
    """The metrics pass the checks of promtool."""
    store = MemoryStore()
    fill(store)
    done = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=scrape(exported(store)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.integration
def test_prometheus_scrapes_the_metrics(exported, tmp_path):
    """A real Prometheus reads the numbers and sees them rise."""
    store = MemoryStore()
    fill(store)
    config = f"""
scrape_configs:
  - job_name: offload
    scrape_interval: 1s
    static_configs:
      - targets: ["{HOST}:{exported(store)}"]
"""
    query = 'sum(offload_offloaded_bytes_total{task="shop.total"})'
    with prometheus(tmp_path, config) as server:
        wait_until(lambda: server.query(query) == [5], "prometheus has scraped the numbers")
        fill(store)
        wait_until(lambda: server.query(query) == [10], "prometheus has scraped the increase")


def test_stores_and_workers_are_checked(exported):
    """Memory against its limit, evictions, and workers are gauges, checked while somebody
    scrapes; a scrape doesn't wait for them.
    """
    with redis_server(args=["--maxmemory", "64mb"]) as server:
        runtime = make_wire(store=server.url).app._offload
        checks = Gauges(runtime, every=0.1)
        port = exported(runtime.store, more=[checks])
        try:
            assert "offload_workers" not in scrape(port)
            wait_until(lambda: "offload_workers{" in scrape(port), "workers were asked")
            found = samples(port)
            store, none = ("store", server.url), ("server", "")
            assert found["offload_store_limit_bytes", none, store] == 64 << 20
            assert 0 < found["offload_store_used_bytes", none, store] < 64 << 20
            assert found["offload_store_evicted_keys_total", none, store] == 0
            assert found["offload_store_available", store] == 1
            assert found["offload_workers", ("state", "connected")] == 0
            assert found["offload_worker_problems", ("level", "error")] == 0
            server.stop()
            wait_until(
                lambda: samples(port)["offload_store_available", store] == 0, "unavailable", 60
            )
        finally:
            checks.close()


def test_problems_of_workers_are_counted():
    """Workers are counted by state, and findings by level."""
    workers = Workers(
        0.0, (Worker("a", "connected"), Worker("b", "without"), Worker("c", "without"))
    )
    drift = [Finding("ok", "x"), Finding("warning", "y"), Finding("error", "z")]
    counted = {
        (sample.name, *sample.labels.values()): sample.value
        for family in gauges._of_workers(workers, drift)
        for sample in family.samples
    }
    assert counted["offload_workers", "without"] == 2
    assert counted["offload_workers", "silent"] == 0
    assert counted["offload_worker_problems", "warning"] == 1
    assert counted["offload_worker_problems", "error"] == 1
