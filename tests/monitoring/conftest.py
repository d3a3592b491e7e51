"""A Prometheus with the rules that has scraped rising counters."""

from __future__ import annotations

import pytest

from offload.metrics.prometheus import serve
from offload.stores.memory import MemoryStore
from tests.support.processes import wait_until
from tests.support.prometheus import RULES, count, prometheus
from tests.support.servers import HOST


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """Return a Prometheus that has scraped a value of every counter, and then a higher one."""
    store = MemoryStore()
    count(store)
    port, exporter = serve(store, HOST, 0)
    config = f"""
global: {{ scrape_interval: 200ms, evaluation_interval: 200ms }}
rule_files: ["{RULES}"]
scrape_configs:
  - job_name: offload
    static_configs: [{{ targets: ["{HOST}:{port}"] }}]
"""
    rise = "min(increase(offload_seen_values_total[1m])) > 0"
    try:
        with prometheus(tmp_path_factory.mktemp("prometheus"), config) as server:
            wait_until(lambda: server.query("offload_seen_values_total"), "counters were scraped")
            count(store)
            wait_until(lambda: server.query(rise), "counters were scraped again")
            yield server
    finally:
        exporter.shutdown()
        exporter.server_close()
