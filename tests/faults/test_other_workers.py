"""Workers with other settings than their publishers, or without access to the store."""

from __future__ import annotations

import pytest
from faults import BIG

from offload.errors import ValueTooLarge
from tests.support.processes import wait_until

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]


def test_over_the_readers_largest_size(setup):
    """A worker with a smaller offload_max_size refuses a value by the size in its reference."""
    setup.worker(max_size=50_000)
    result = setup.task("size").delay(BIG)
    before = setup.stored.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]
    error = setup.failure(result)
    assert type(error) is ValueTooLarge
    assert "task 'size', value:" in str(error)
    assert "offload_max_size" in str(error)
    assert setup.entered(result) == []
    after = setup.stored.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]
    assert after == before


def test_a_fresh_worker_without_its_store(setup):
    """A worker that never reached the store, and has no signing key, resends the task and runs it
    when the store is available.
    """
    result = setup.task("size").delay(BIG)
    setup.proxy.refuse()
    setup.worker(retry={"max_retries": 20, "interval_start": 0.05, "interval_max": 0.1})
    wait_until(lambda: result.state == "RETRY", "the task is being sent again", 30)
    setup.proxy.restore()
    assert setup.wait(result).get() == ["str", len(BIG)]
    assert len(setup.entered(result)) == 1
