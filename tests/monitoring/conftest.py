"""A Prometheus with the rules that has scraped rising counters."""

from __future__ import annotations

import pytest

from offload.doctor.gauges import Gauges
from offload.metrics.prometheus import serve
from tests.support.processes import wait_until
from tests.support.prometheus import RULES, count, prometheus
from tests.support.servers import HOST, redis_server
from tests.support.wire import make_wire


@pytest.fixture(scope="module")
def own_redis():
    """Return a server with a limited memory."""
    with redis_server(args=["--maxmemory", "1gb"]) as server:
        yield server


@pytest.fixture(scope="module")
def live(tmp_path_factory, own_redis):
    """Return a Prometheus that has scraped a value of every counter, and then a higher one."""
    runtime = make_wire(store=own_redis.url).app._offload
    store = runtime.store
    count(store)
    gauges = Gauges(runtime, every=0.2)
    port, exporter = serve(store, HOST, 0, more=[gauges])
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
        gauges.close()
        exporter.shutdown()
        exporter.server_close()
