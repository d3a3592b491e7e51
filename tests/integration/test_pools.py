"""Large values in parallel, in every pool, from threads and from greenlets."""

from __future__ import annotations

import json
import sys
import uuid
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
import redis

from tests.integration.pools import MB, common, create, digest, large, spoiled
from tests.integration.publishers import TASKS, THREADS
from tests.support.processes import Process, environment, wait_until, worker
from tests.support.proxy import Proxy
from tests.support.servers import redis_client

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

APP = "tests.integration.pools"
GREENLETS = 20
TIMEOUT = 40
HELD = 200_000  # bytes after which the proxy holds a connection; no small value has as many


CONCURRENCY = {"prefork": 4, "threads": 8, "gevent": GREENLETS, "solo": 1}
EVERYWHERE = tuple(
    (pool, kind) for pool in CONCURRENCY if pool != "solo" for kind in ("redis", "s3")
)


@pytest.fixture(scope="module")
def workers(broker_server, store_server, tmp_path_factory, request):
    """Start a worker of this pool with this kind of store, unless it runs already."""
    for each in (broker_server, store_server):
        with redis_client(each) as client:
            client.flushall()
    started = {}
    with ExitStack() as stack:

        def start(pool, kind):
            if (pool, kind) not in started:
                server = request.getfixturevalue("s3") if kind == "s3" else store_server
                folder = tmp_path_factory.mktemp(f"{pool}-{kind}")
                numbers = 2 * len(started), 2 * len(started) + 1  # databases of its own
                urls = [f"redis://{broker_server.host}:{broker_server.port}/{n}" for n in numbers]
                setup = a_worker(pool, kind, server, urls, folder)
                started[pool, kind] = stack.enter_context(setup)
            return started[pool, kind]

        yield start


@contextmanager
def a_worker(pool, kind, server, urls, folder):
    """Run a worker, a proxy between it and the store, and an app that bypasses the proxy."""
    prefix = f"pools/{uuid.uuid4().hex}"

    def config(port, cache):
        is_s3 = kind == "s3"
        store = server.url(prefix, port=port) if is_s3 else f"redis://{server.host}:{port}/0"
        offload = {"store": store, "cache": cache}
        return {"broker": urls[0], "backend": urls[1], "offload": offload}

    cache = folder / "cache"
    with Proxy(server.port) as proxy:
        app = create(config(server.port, "off"))
        config = config(proxy.port, str(cache))
        with worker(folder, config, pool=pool, concurrency=CONCURRENCY[pool], app=APP) as process:
            yield SimpleNamespace(app=app, proxy=proxy, config=config, cache=cache, kind=kind)
            process.popen.kill()  # a pool takes seconds to exit by itself
        app.close()


@pytest.fixture
def running(workers, request):
    """Return the worker for the test's parameter."""
    return workers(*request.param)


def on(*rows):
    """Run a test with each of these pools and kinds of store."""
    return pytest.mark.parametrize("running", rows, indirect=True, ids="-".join)


@on(*EVERYWHERE)
def test_large_values_in_parallel(running):
    """Many concurrent tasks get complete values and return what they computed; none sees another's
    changes to a shared value.
    """
    count = 24 if running.kind == "redis" else 12  # more than run at once
    shared = [common(number) for number in range(3)]
    results = [
        running.app.tasks["mix"].delay(large(number), shared[number // 2 % 3], number)
        for number in range(count)
    ]
    for number, result in enumerate(results):
        report = result.get(timeout=TIMEOUT)
        own, theirs = large(number), common(number // 2 % 3)
        assert report["seen"] == [digest(own), digest(theirs)]
        assert report["changed"] == [digest(spoiled(own, number)), digest(spoiled(theirs, number))]
        assert report["later"] == report["changed"]
        assert digest(report["own"]) == report["changed"][0]
    # Each argument and result once, for all processes, and no partial one.
    names = [path.name for path in running.cache.iterdir() if path.name.startswith("b3-")]
    assert len(names) == 2 * count + len(shared)
    assert not [name for name in names if name.endswith(".part")]


@on(*((pool, "redis") for pool in CONCURRENCY))
def test_a_hold_lasts_as_long_as_its_task(running):
    """In every pool, the hold of an expiring message is renewed while its task runs."""
    result = running.app.tasks["outlasts"].apply_async((b"1" * MB,), expires=2)
    assert result.get(timeout=TIMEOUT) == MB


@on(("gevent", "redis"), ("gevent", "s3"))
def test_greenlets_do_not_wait_for_each_others_values(running):
    """While many greenlets are fetching large values, another runs a task: neither a socket nor
    boto3's threads block them all.
    """
    app, proxy, many = running.app, running.proxy, GREENLETS - 1
    assert app.tasks["change"].delay(b"1" * MB, 1).get(timeout=TIMEOUT) == b"1" * MB
    entered = app.backend.client.get("entered")
    proxy.hold_after(HELD, "answers")
    results = [app.tasks["change"].delay(large(n), n) for n in range(100, 100 + many)]
    wait_until(lambda: proxy.held >= many, "every greenlet fetches its value")
    assert [app.tasks["small"].delay(n).get(timeout=TIMEOUT) for n in range(5)] == [*range(5)]
    assert proxy.held >= many
    assert app.backend.client.get("entered") == entered
    proxy.release()
    found = [digest(result.get(timeout=TIMEOUT)) for result in results]
    assert found == [digest(spoiled(large(n), n)) for n in range(100, 100 + many)]


@pytest.mark.parametrize(
    ("made_of", "running"),
    (
        ("threads", ("threads", "redis")),
        ("greenlets", ("threads", "redis")),
        ("greenlets", ("gevent", "s3")),
    ),
    indirect=["running"],
    ids=["threads-redis", "greenlets-redis", "greenlets-s3"],
)
def test_publishing_in_parallel(running, tmp_path, made_of):
    """Threads or greenlets that share an app publish at once from its first use on; a small task
    runs while all of them are uploading.
    """
    proxy, config = running.proxy, running.config
    publishers = {**config, "first": {"threads": 200, "greenlets": 300}[made_of]}
    publishers["offload"] = {**config["offload"], "cache": "off"}
    patched = ["gevent.monkey", "--module"] if made_of == "greenlets" else []
    command = [sys.executable, "-m", *patched, "tests.integration.publishers"]
    proxy.hold_after(HELD, "requests")
    log, env = tmp_path / "publisher.log", environment(publishers)
    process = Process(command, log, env, fork=not patched)
    try:
        with redis.Redis.from_url(config["backend"]) as notes:
            notes.delete("go", "gone")
            process.wait_for(lambda: proxy.held >= THREADS, "all are uploading", TIMEOUT)
            notes.rpush("go", "go")
            process.wait_for(lambda: notes.llen("gone"), "small tasks are done", TIMEOUT)
        proxy.release()
        process.finish(TIMEOUT)
        report = next(line for line in process.log().splitlines() if line.startswith("{"))
    finally:
        proxy.release()
        process.stop()
    assert json.loads(report) == {"made_of": made_of, "before": 0, "right": THREADS * TASKS}
