"""An unreachable store delays the exit of a process by two seconds at most."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.careless_s3 import careless_s3
from tests.support.processes import JsonProcess, environment
from tests.support.proxy import Proxy

TIMEOUT = 120  # seconds that the driver would wait
BOUND = 30  # seconds; more than needed, as the machine may be busy

SCRIPT = """
import asyncio, os, sys, tempfile, threading
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
remembered = hook.memoize(60, version="1")(lambda rows: rows)
if way == "memo":
    remembered("r" * 3_000)
elif way == "catalog":
    from offload import Catalog
    folder = tempfile.mkdtemp()
    catalog = Catalog(hook.store, cache_dir=folder, offline="queue")
    catalog.save("exit/model", "r" * 3_000)
elif way == "coroutine":
    asyncio.run(hook.aput("r" * 3_000_000))
sums_of(hook.store).total()
print('"ready"', flush=True)
sys.stdin.readline()  # until the store is unreachable
hook.counters.add(values_seen=1)
if way == "threads":  # busy when the process exits
    threading.Thread(target=hook.store.blobs.hold, args=([ref.digest for ref in refs], 10.0),
                     daemon=True).start()
if way == "coroutine":  # its thread still waits for the store when the process exits
    try:
        asyncio.run(asyncio.wait_for(hook.aput("s" * 3_000_000), 0.5))
    except asyncio.TimeoutError:
        pass
if way in ("memo", "catalog"):
    busy = remembered if way == "memo" else lambda rows: catalog.save("exit/model", rows)
    threading.Thread(target=busy, args=("t" * 3_000,), daemon=True).start()
if way == "child":  # as billiard's children exit
    signals.worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=0)
    os._exit(0)
"""


def check_exit(way, url, proxy, swallowed):
    process = JsonProcess([sys.executable, "-c", SCRIPT, way, url], environment())
    try:
        assert process.receive() == "ready"
        proxy.blackhole()
        process.send("go on")
        assert process.popen.wait(BOUND) == 0
        if swallowed:
            assert proxy.swallowed > 0
    finally:
        process.close()


@pytest.mark.server
@pytest.mark.parametrize(
    "way",
    (
        *("publisher", "observe", "threads", "child", "idle"),
        *("memo", "catalog", "coroutine"),
    ),
)
def test_redis(redis, way):
    """A process that has used Redis exits in time, whatever it still has to write."""
    with Proxy(redis.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0?socket_timeout={TIMEOUT}"
        check_exit(way, f"{url}&socket_connect_timeout={TIMEOUT}&prefix=exit", proxy, way != "idle")


@pytest.mark.parametrize("way", ("publisher", "threads", "child"))
def test_s3(way):
    """A process that has used S3, with requests in threads, exits in time."""
    with careless_s3() as direct:
        port = int(direct.partition("127.0.0.1:")[2].partition("&")[0])
        with Proxy(port) as proxy:
            url = direct.replace(f":{port}&", f":{proxy.port}&")
            timeouts = f"&read_timeout={TIMEOUT}&connect_timeout={TIMEOUT}"
            check_exit(way, url + timeouts, proxy, swallowed=True)


def test_the_pools_threads_are_not_waited_for():
    """A process exits without waiting for the threads of a store."""
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
    subprocess.run([sys.executable, "-c", script], env=environment(), check=True, timeout=BOUND)
