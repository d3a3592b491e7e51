"""The task ``offload.gc``, run by beat and a real worker."""

from __future__ import annotations

import sys
import time

import pytest

from offload.stores.file import FileStore
from offload.testing.store import blobs
from tests.support.processes import Process, wait_until
from tests.support.servers import redis_client

pytestmark = [pytest.mark.integration, pytest.mark.server]

SCHEDULE = """
app.conf.task_default_queue = "beat-gc"
app.conf.beat_schedule = {"gc": {"task": "offload.gc", "schedule": 0.2}}
"""


def test_a_worker_sweeps_by_schedule(project, redis, tmp_path):
    """With a beat entry, a worker sweeps expired blobs repeatedly and keeps others."""
    root = tmp_path / "store"
    ending, living = blobs(2), blobs(1)
    past = FileStore(root, clock=lambda: time.time() - 7200)
    past.blobs.put(ending, 3600)
    now = FileStore(root)
    now.blobs.put(living, 3600)
    project.write(SCHEDULE, broker=redis.url, store=now.url)
    command = [sys.executable, "-m", "celery", "-A", "proj", "worker", "-B", "-c", "2"]
    command += ["-s", str(tmp_path / "schedule"), "-l", "INFO", "--without-mingle"]
    worker = Process(command, tmp_path / "worker.log", project.environment, fork=True)
    try:
        for again in (ending, blobs(2)):
            past.blobs.put(again, 3600)
            wait_until(
                lambda: not any(blob.kind == "blob" for blob in now.sweep(dry_run=True)),
                "the worker has swept",
                60,
            )
    except TimeoutError:
        print(worker.log())
        raise
    finally:
        worker.stop()
        with redis_client(redis) as client:
            client.delete("beat-gc")
    assert now.blobs.hold(list(living), 1) == set()
    assert "succeeded" in worker.log()
    assert "Traceback" not in worker.log()
