"""Killing a process at any point loses nothing that plain Celery keeps, and leftovers expire."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from faults import BIG, HERE

from tests.support.processes import environment, wait_until
from tests.support.servers import redis_client, redis_server

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

LARGE = 3_000_000


def test_a_publisher_killed_before_it_publishes(setup, tmp_path):
    """kill -9 after the upload leaves blobs that expire, and no message; publishing again reuses
    them.
    """
    code = (
        "import faulty_app, os, signal\n"
        "app = faulty_app.app\n"
        "app.stowaway.put  # connected\n"
        "from kombu import Producer\n"
        "Producer.publish = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"app.tasks['size'].delay({BIG!r})\n"
    )
    env = environment(setup.config, HERE)
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not setup.messages()
    (key,) = setup.blobs()
    assert 0 < setup.stored.ttl(key) < 7 * 86400 * 1.25 + 61
    setup.task("size").delay(BIG)
    assert setup.blobs() == [key]
    assert setup.offload.counters.snapshot()["blobs_uploaded"] == 0


@pytest.fixture
def halting(setup):
    """Return a setup with long timeouts whose proxy can stop a worker's traffic midway."""
    url = setup.proxy.url.replace("=0.5", "=30")
    setup.config["offload"]["store"] = url
    setup.config["offload"]["compression"] = "none"
    return setup


def kill_child(worker):
    (child,) = worker.children()
    os.kill(child, signal.SIGKILL)


def test_a_worker_killed_while_it_fetches(halting):
    """With acks_late and reject_on_worker_lost, another process gets the task, fetches its
    argument, and runs it once.
    """
    worker = halting.worker("-P", "prefork", "-c", "1")
    warm = halting.task("late").delay("small")
    halting.wait(warm)
    _ = halting.offload._runtime.content.signing.keys
    result = halting.task("late").apply_async((BIG,), countdown=1)
    halting.proxy.blackhole()
    sent = halting.proxy.swallowed
    wait_until(lambda: halting.proxy.swallowed > sent, "the worker asks for the value", 30)
    kill_child(worker)
    halting.proxy.restore()
    assert halting.wait(result).get() == len(BIG)
    assert len(halting.entered(result)) == 1


def test_a_worker_killed_while_it_uploads(halting):
    """Killed while it stores its result, the task runs again and its result is complete; what the
    first run left expires.
    """
    worker = halting.worker("-P", "prefork", "-c", "1")
    halting.proxy.halt_after(LARGE // 2)
    result = halting.task("late_produce").delay(LARGE)
    wait_until(lambda: halting.proxy.halted, "the upload has started", 30)
    assert len(halting.entered(result)) == 1
    kill_child(worker)
    halting.proxy.restore()
    assert len(halting.wait(result).get()) == LARGE
    assert len(halting.entered(result)) == 2
    for key in halting.blobs():
        assert halting.stored.ttl(key) > 0


def test_a_whole_worker_killed_while_it_fetches(halting):
    """If the whole worker dies, the broker redelivers unacknowledged messages, and their references
    still work.
    """
    halting.config["conf"]["task_acks_late"] = True
    worker = halting.worker()
    _ = halting.offload._runtime.content.signing.keys
    warm = halting.task("late").delay("small")
    halting.wait(warm)
    result = halting.task("late").apply_async((BIG,), countdown=1)
    halting.proxy.blackhole()
    sent = halting.proxy.swallowed
    wait_until(lambda: halting.proxy.swallowed > sent, "the worker asks for the value", 30)
    worker.kill()
    halting.proxy.restore()
    # Apply the broker's visibility timeout now: the message returns to the queue.
    with halting.app.connection_for_read() as connection:
        connection.transport_options = {"visibility_timeout": 0}
        connection.default_channel.qos.restore_visible(interval=1)
    assert halting.messages()
    halting.worker()
    assert halting.wait(result).get() == len(BIG)
    assert len(halting.entered(result)) == 1


def test_a_store_that_evicts(setup):
    """If the store evicted a value, the task fails with BlobMissing, which mentions eviction; it
    neither hangs nor gets another value.
    """
    with redis_server(args=("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru")) as small:
        setup.config["offload"]["store"] = small.url
        setup.config["offload"]["compression"] = "none"
        app = setup.publisher(secret="a secret of enough length")
        result = setup.task("size", app).delay("first" + BIG)
        with redis_client(small) as client:
            first = client.keys("offload:blob:*")
            deadline = time.monotonic() + 20
            n = 0
            while client.exists(*first) and time.monotonic() < deadline:
                n += 1
                app.stowaway.put(f"{n}" + BIG * 3)
        setup.worker(secret="a secret of enough length")
        error = setup.failure(result)
        assert type(error).__name__ == "BlobMissing"
        assert "evicts keys" in str(error)
