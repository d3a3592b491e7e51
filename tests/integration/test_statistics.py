"""Counters of real workers, in stores that can't add (files and S3), and of idle workers."""

from __future__ import annotations

import json
import os
import signal

import pytest

from offload import BlobMissing
from offload.metrics.report import report
from offload.metrics.storage import sums_of
from offload.stores import open_store
from offload.testing.store import unique
from tests.integration.features import create
from tests.support import forkserver
from tests.support.processes import environment, wait_until, worker
from tests.support.servers import redis_client

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(180)]

VALUES = 12


@pytest.fixture(params=["file", "s3"])
def store(request, tmp_path):
    if request.param == "file":
        return f"file://{tmp_path}/store"
    return request.getfixturevalue("s3").url(unique())


@pytest.fixture
def config(broker_server, store):
    return make_config(broker_server, store)


def make_config(broker_server, store):
    with redis_client(broker_server) as client:
        client.flushall()
    base = f"redis://{broker_server.host}:{broker_server.port}"
    return {
        "broker": f"{base}/0",
        "backend": f"{base}/1",
        "offload": {"store": store, "cache": "off", "threshold": 1000, "stats_interval": 3600.0},
    }


def run_tasks(app):
    answers = [app.tasks["lengths"].delay([f"{n:04}" * 1000]) for n in range(VALUES)]
    for answer in answers:
        assert answer.get(timeout=60) == [4000]


def fetched(config):
    found = report(sums_of(open_store(config["offload"]["store"])))
    return found.tasks["lengths"]["values_fetched"] if "lengths" in found.tasks else 0


def test_all_counts_of_children_are_stored_when_a_worker_exits(config, tmp_path):
    """The counts of children that ran one task, or many, are stored when the worker has exited; the
    command shows them, and ``gc`` keeps them.
    """
    app = create(config)
    limit = ("--max-tasks-per-child", "3")
    with worker(tmp_path, config, app="tests.integration.features", args=limit):
        run_tasks(app)
        # If the worker stopped before it read a result, its child would wait 30 seconds for that.
        inspect = app.control.inspect(limit=1)
        wait_until(lambda: not any(inspect.active().values()), "the worker has read all results")
    assert fetched(config) == VALUES
    for words in (["gc"], ["stats", "--by", "task"], ["stats", "--json"], ["doctor"]):
        command = ["-A", "tests.integration.features", "offload", *words]
        done = forkserver.run(command, env=environment(config))
        assert done.returncode == 0, done.stdout + done.stderr
        if words[-1] == "--json":
            assert json.loads(done.stdout)["tasks"]["lengths"]["values_fetched"] == VALUES
    assert fetched(config) == VALUES
    app.close()


def test_a_killed_worker_loses_only_unwritten_counts(config, tmp_path):
    """A thread writes after the interval, even if nothing else happens."""
    app = create(config)
    config["offload"]["stats_interval"] = 0.5
    with worker(tmp_path, config, app="tests.integration.features") as process:
        run_tasks(app)
        wait_until(lambda: fetched(config) == VALUES, "all is written", timeout=60)
        os.killpg(process.popen.pid, signal.SIGKILL)
        process.popen.wait()
    assert fetched(config) == VALUES
    app.close()


@pytest.mark.parametrize("pool", ("prefork", "threads", "gevent", "solo"))
def test_an_idle_worker_writes_its_errors(broker_server, store_server, tmp_path, pool):
    """A timer writes an idle worker's counts once, in every pool, because no store call can carry
    them.
    """
    if pool == "gevent":
        pytest.importorskip("gevent")
    store = f"redis://{store_server.host}:{store_server.port}?prefix=idle-{pool}-{os.getpid()}"
    config = make_config(broker_server, store)
    app = create(config)
    answer = app.tasks["same"].delay("x" * 5000)
    app.offload.store.blobs.delete([app.offload.put("x" * 5000).digest])
    app.offload._runtime.recorder.write()
    config["offload"]["stats_interval"] = 0.5
    tallies = sums_of(open_store(store))
    with worker(tmp_path, config, app="tests.integration.features", pool=pool) as process:
        with pytest.raises(BlobMissing):
            answer.get(timeout=60)
        wait_until(
            lambda: report(tallies).total.errors.get("missing"), "the error is stored", timeout=60
        )
        lost = app.offload.put("y" * 5000)
        app.offload.store.blobs.delete([lost.digest])
        with pytest.raises(BlobMissing):
            app.tasks["read"].delay(lost).get(timeout=60)
        told = "what the task's own code read is told, too"
        wait_until(lambda: report(tallies).total.errors["missing"] == 2, told, timeout=60)
        written = tallies.total()
        process.stop()
    assert process.popen.returncode == 0
    assert tallies.total() == written  # nothing remained
    app.close()
