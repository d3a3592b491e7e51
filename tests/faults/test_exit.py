"""A store that has become a black hole holds up the end of a process for two seconds at most."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.careless_s3 import careless_s3
from tests.support.proxy import Proxy

ROOT = Path(__file__).parents[2]
TIMEOUT = 120  # seconds that the driver would wait
BOUND = 30  # the process has ended long before; the machine may be busy

SCRIPT = """
import os, sys, threading
from celery import Celery, signals
from offload.metrics.storage import sums_of
from offload import Offload
way, url = sys.argv[1:]
app = Celery("exit", broker="memory://", set_as_current=False)
mode = "observe" if way == "observe" else "on"
hook = Offload(app, store=url, cache="off", mode=mode, secret="of sixteen characters",
               retry={"max_retries": 0})
if way != "idle":
    refs = [hook.put(bytes([number]) * 3_000_000) for number in range(3)]
sums_of(hook.store).total()
print("ready", flush=True)
sys.stdin.readline()  # until the store is a black hole
hook.counters.add(values_seen=1)
if way == "threads":  # busy when the process ends
    threading.Thread(target=hook.store.blobs.hold, args=([ref.digest for ref in refs], 10.0),
                     daemon=True).start()
if way == "child":  # as billiard's children end
    signals.worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=0)
    os._exit(0)
"""


def ends(way, url, proxy, swallowed):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, way, url],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        proxy.blackhole()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(BOUND) == 0
        if swallowed:
            assert proxy.swallowed > 0
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.server
@pytest.mark.parametrize("way", ("publisher", "observe", "threads", "child", "idle"))
def test_redis(redis, way):
    """A process that has used Redis ends in time, whatever it had still to write."""
    with Proxy(redis.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0?socket_timeout={TIMEOUT}"
        ends(way, f"{url}&socket_connect_timeout={TIMEOUT}&prefix=exit", proxy, way != "idle")


@pytest.mark.parametrize("way", ("publisher", "threads", "child"))
def test_s3(way):
    """So does one that has used S3, whose requests threads make."""
    with careless_s3() as direct:
        port = int(direct.partition("127.0.0.1:")[2].partition("&")[0])
        with Proxy(port) as proxy:
            url = direct.replace(f":{port}&", f":{proxy.port}&")
            timeouts = f"&read_timeout={TIMEOUT}&connect_timeout={TIMEOUT}"
            ends(way, url + timeouts, proxy, swallowed=True)


def test_the_pools_threads_are_not_waited_for():
    """What is under way in a store's threads is abandoned when the process ends."""
    script = """
import threading, time
from offload.stores.processes import Threads
threads, started = Threads(4, "stuck"), threading.Semaphore(0)
def stuck(_):
    started.release()
    threading.Event().wait()
threading.Thread(target=threads.each, args=(stuck, range(4)), daemon=True).start()
for _ in range(4):
    started.acquire()
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], env=env, check=True, timeout=BOUND)
