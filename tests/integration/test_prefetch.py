"""Prefetch in real workers: a waiting task's value is in the node cache before the task starts."""

from __future__ import annotations

import os
import sys

import pytest

from tests.integration.features import create
from tests.support.processes import wait_until, worker
from tests.support.servers import redis_client

pytestmark = [
    pytest.mark.server,
    pytest.mark.integration,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="flock, /proc and tmpfs"),
]

TIMEOUT = 30
SIZE = 3 * 1024**2


def text():
    """Return a large value that JSON can serialize and that compresses by at most half."""
    return os.urandom(SIZE // 2).hex()


class Setup:
    """A broker, a store, and a node cache, with an app that publishes."""

    def __init__(self, broker, store_url, folder, **offload):
        with redis_client(broker) as client:
            client.flushall()
        base = f"redis://{broker.host}:{broker.port}"
        self.cache = folder / "cache"
        self.folder = folder
        self.config = {
            "broker": f"{base}/0",
            "backend": f"{base}/1",
            "offload": {"store": store_url, "cache": str(self.cache), **offload},
        }
        self.notes = redis_client(broker, db=1)
        self.app = create(self.config)

    def worker(self, *args, **options):
        return worker(
            self.folder, self.config, app="tests.integration.features", args=args, **options
        )

    def run(self, task, *args):
        return self.app.tasks[task].delay(*args)

    def is_cached(self, ref):
        return (self.cache / ref.digest.replace(":", "-")).exists()

    def close(self):
        self.notes.close()
        self.app.close()


@pytest.fixture
def setup(broker_server, store_server, tmp_path):
    made = Setup(broker_server, store_server.url, tmp_path)
    yield made
    made.close()


def test_a_waiting_tasks_value_is_in_the_node_cache(setup, store_server):
    """While the only child is busy, the next task's value is fetched into the node cache; the child
    reads it there without a read of the store.
    """
    ref = setup.app.offload.put(text())
    with setup.worker(concurrency=1), redis_client(store_server) as store:
        first = setup.run("wait", "small", "go")
        second = setup.run("counted_with", ref)
        wait_until(lambda: setup.is_cached(ref), "the value is cached", TIMEOUT)
        assert not first.ready()
        store.config_resetstat()
        setup.notes.rpush("go", "go")
        length, counts = second.get(timeout=TIMEOUT)
        assert length == SIZE
        assert (counts["cache_hits"], counts["cache_misses"], counts["values_fetched"]) == (1, 0, 0)
        assert store.info("stats")["total_net_output_bytes"] < SIZE / 10


@pytest.mark.parametrize(
    ("pool", "setting", "fetched"),
    (
        ("solo", "auto", 0),
        ("threads", "auto", 0),
        ("gevent", "auto", 0),
        ("prefork", "off", 0),
        ("threads", "on", 1),
        ("gevent", "on", 1),
    ),
)
def test_other_pools_prefetch_on_request(setup, pool, setting, fetched):
    """Only prefork workers prefetch by default; others do on request."""
    if pool == "gevent":
        pytest.importorskip("gevent")
    setup.config["offload"]["prefetch"] = setting
    ref = setup.app.offload.put(text())
    with setup.worker("--prefetch-multiplier=4", concurrency=1, pool=pool):
        setup.run("wait", "small", "go")
        second = setup.run("counted_with", ref)
        if fetched:
            wait_until(lambda: setup.is_cached(ref), "the value is cached", TIMEOUT)
        setup.notes.rpush("go", "go")
        length, counts = second.get(timeout=TIMEOUT)
        assert length == SIZE
        assert counts["prefetch_done"] == fetched
        assert (counts["cache_hits"], counts["cache_misses"]) == (fetched, 1 - fetched)


@pytest.mark.parametrize("kind", ("redis", "s3"))
def test_children_are_forked_meanwhile(request, broker_server, store_server, tmp_path, kind):
    """With a new child for each task, and prefetches at the same time, every task succeeds, and
    some hit the cache.
    """
    url = request.getfixturevalue("s3").url(tmp_path.name) if kind == "s3" else store_server.url
    setup = Setup(broker_server, url, tmp_path, cache_size=16 * SIZE)
    try:
        with setup.worker("--max-tasks-per-child=1") as running:
            results = [setup.run("counted_with", text()) for _ in range(12)]
            found = [result.get(timeout=TIMEOUT) for result in results]
        assert [length for length, _ in found] == [SIZE] * len(found)
        assert sum(counts["cache_hits"] for _, counts in found) > 0
        assert sum(counts["cache_hits"] + counts["cache_misses"] for _, counts in found) == len(
            found
        )
        assert "Traceback" not in running.log()
        assert not list(setup.cache.glob("*.part"))
    finally:
        setup.close()
