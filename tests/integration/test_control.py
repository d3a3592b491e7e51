"""``celery inspect offload`` with a real worker."""

from __future__ import annotations

import json
import os
import sys

import celery
import pytest

from tests.integration.features import create
from tests.support import forkserver
from tests.support.processes import environment, worker
from tests.support.servers import redis_client

pytestmark = [
    pytest.mark.server,
    pytest.mark.integration,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="the node cache needs flock and tmpfs"),
]


@pytest.fixture
def config(broker_server, store_server, tmp_path):
    with redis_client(broker_server) as client:
        client.flushall()
    base = f"redis://{broker_server.host}:{broker_server.port}"
    store = f"redis://:secret@{store_server.host}:{store_server.port}"
    with redis_client(store_server) as client:
        client.config_set("requirepass", "secret")
    yield {
        "broker": f"{base}/0",
        "backend": f"{base}/1",
        "offload": {
            "store": store,
            "cache": str(tmp_path / "cache"),
            "secret": "a secret of the app's own",
            "threshold": 1000,
            "code": "signed",
            "signing_key": "hmac:another secret of the app's own",
        },
    }
    with redis_client(store_server, password="secret") as client:
        client.config_set("requirepass", "")


def test_a_worker_reports_its_settings_and_cache(config, tmp_path):
    """A worker reports its settings, store, and node cache, and no password or key."""
    app = create(config)
    with worker(tmp_path, config, app="tests.integration.features", pool="threads") as process:
        app.tasks["counted_with"].delay(os.urandom(1 << 20).hex()).get(timeout=30)
        log = process.log()
        shown = inspected(app, config)
    app.close()
    [report] = json.loads(shown).values()
    assert report["settings"]["threshold"] == 1000
    assert report["settings"]["code"] == "signed"
    assert report["cache"]["values"] == 1
    store = config["offload"]["store"].replace(":secret@", "")
    said = f"store {store}, mode on, threshold 1.0 kB, cache {tmp_path}/cache"
    banner, _, logged = log.partition("[queues]")
    assert f" .> offload:     {said}" in banner
    assert f"offload: {said}" in logged
    assert "secret" not in log
    assert report["cache"]["bytes"] >= 2 << 20
    assert report["counters"]["cache_hits"] == 1
    assert "secret" not in shown


def inspected(app, config):
    """Return the workers' replies to `inspect offload` as JSON."""
    if celery.VERSION < (5, 4):  # the command line offers only Celery's own queries
        [reply] = app.control.broadcast("offload", reply=True, limit=1, timeout=10)
        return json.dumps(reply)
    command = ["-A", "tests.integration.features", "inspect", "offload", "--json"]
    done = forkserver.run([*command, "--timeout", "10"], env=environment(config))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
