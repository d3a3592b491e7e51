"""Write-through with real workers: what one process of a machine stores, the others only map."""

from __future__ import annotations

import sys

import pytest
from celery import chain

from tests.integration.test_prefetch import SIZE, TIMEOUT, Setup, text
from tests.support.servers import redis_client

pytestmark = [
    pytest.mark.server,
    pytest.mark.integration,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="flock, /proc and tmpfs"),
]

NUMBERS = 600_000  # as JSON more than 1 MiB


@pytest.mark.parametrize("pool", ("prefork", "solo", "threads"))
def test_new_values_are_not_read_from_the_store(broker_server, store_server, tmp_path, pool):
    """Neither a new argument nor the result of a chain's step is read from the store by a worker on
    the machine; once that has ended, nothing is written through.
    """
    setup = Setup(broker_server, store_server.url, tmp_path)
    tasks, counters = setup.app.tasks, setup.app.offload.counters
    try:
        with setup.worker(concurrency=1, pool=pool), redis_client(store_server) as store:
            store.config_resetstat()
            length, counts = setup.run("counted_with", text()).get(timeout=TIMEOUT)
            assert (length, counts["cache_hits"]) == (SIZE, 1)
            assert counters.snapshot()["cache_written"] == 1
            steps = chain(tasks["make"].s(7, NUMBERS), tasks["counted_with"].s())
            length, counts = steps.delay().get(timeout=TIMEOUT)
            assert length == NUMBERS
            assert (counts["cache_written"], counts["cache_hits"]) == (1, 2)
            assert (counts["cache_misses"], counts["values_fetched"]) == (0, 0)
            assert "cmdstat_getrange" not in store.info("commandstats")
        setup.app.offload.put(text())
        assert counters.snapshot()["cache_written"] == 1
    finally:
        setup.close()
