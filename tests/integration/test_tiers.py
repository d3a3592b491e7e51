"""A real worker with Redis above S3: where arguments and results are stored, and when they are
deleted.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from offload import StoreUnavailable
from offload.gc import sweep
from offload.stores import open_store
from tests.integration.features import create
from tests.support.processes import wait_until, worker
from tests.support.proxy import Proxy
from tests.support.servers import redis_client

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

KB, MB = 1000, 1_000_000
HOUR = 3600.0
TIMEOUT = 40


@pytest.fixture(scope="module")
def running(broker_server, store_server, s3, tmp_path_factory):
    """Return an app whose S3 is behind a proxy, and a worker that reaches it directly."""
    prefix = os.urandom(4).hex()
    base = f"redis://{broker_server.host}:{broker_server.port}"
    first = f"{store_server.url}?prefix={prefix}"

    def config(port):
        lower = s3.url(prefix, port=port, max_attempts=1, connect_timeout=0.5, read_timeout=2)
        return {
            "broker": f"{base}/6",
            "backend": f"{base}/7",
            "conf": {"broker_transport_options": {"visibility_timeout": 2}},
            "offload": {
                "store": [first, lower],
                "compression": "none",
                "grace": 1,
                "retry": {"max_retries": 0},
            },
        }

    with redis_client(broker_server) as client:
        client.flushall()
    folder = tmp_path_factory.mktemp("tiers")
    with Proxy(s3.port) as proxy, worker(folder, config(s3.port), app="tests.integration.features"):
        app = create(config(proxy.port))
        tiers = SimpleNamespace(redis=open_store(first), s3=open_store(s3.url(prefix)))
        yield SimpleNamespace(app=app, proxy=proxy, tiers=tiers)
        app.close()


@pytest.fixture
def stored(running):
    """Return the blobs stored in Redis and in S3 since the last call, as sizes by digest."""
    known = set()

    def new(tier):
        found = {info.digest: info.size for info in tier.blobs.scan() if info.digest not in known}
        known.update(found)
        return found

    def both():
        return new(running.tiers.redis), new(running.tiers.s3)

    both()
    return both


def text(size):
    return os.urandom(size // 2).hex()


@pytest.mark.parametrize(
    ("size", "in_redis", "in_s3"), ((KB, 0, 0), (100 * KB, 1, 0), (8 * MB, 1, 2))
)
def test_each_value_is_stored_by_size(running, stored, size, in_redis, in_s3):
    """Small arguments and results stay in their messages, larger ones are in Redis, and the largest
    in S3, with their roots in Redis.
    """
    value = text(size)
    assert running.app.tasks["same"].delay(value).get(timeout=TIMEOUT) == value
    redis, s3 = stored()
    assert (len(redis), len(s3)) == (in_redis, in_s3)
    if in_s3:
        assert sum(redis.values()) < KB
        assert sum(s3.values()) >= size
    assert sum(redis.values()) + sum(s3.values()) >= (size if in_redis else 0)


@pytest.mark.parametrize(("items", "in_redis", "in_s3"), ((50_000, 1, 0), (3_000_000, 1, 2)))
def test_each_result_is_stored_by_size(running, stored, items, in_redis, in_s3):
    """A worker's results are stored by size as well."""
    result = running.app.tasks["make"].delay(items % 10 + 7, items)
    assert result.get(timeout=TIMEOUT) == [items % 10 + 7] * items
    assert tuple(map(len, stored())) == (in_redis, in_s3)


def test_values_of_finished_tasks_are_deleted_from_s3(running, stored):
    """When a task is done and its result forgotten, the next sweep deletes both from S3."""
    result = running.app.tasks["same"].delay(text(8 * MB))
    result.get(timeout=TIMEOUT)
    _, lies = stored()
    assert len(lies) == 2
    result.forget()
    swept = set()

    def is_swept():
        sweep(running.app.offload.store, seen=lambda each: swept.add(each.name))
        return swept >= set(lies)

    wait_until(is_swept, "unreferenced blobs are swept", TIMEOUT)
    assert not {info.digest for info in running.tiers.s3.blobs.scan()} & set(lies)


def test_values_of_waiting_tasks_are_not_swept(running, stored):
    """Values of a waiting or running task stay, even if other tasks that needed them are done."""
    value, key = text(8 * MB), os.urandom(4).hex()
    done = running.app.tasks["same"].delay(value)
    waiting = running.app.tasks["wait"].delay(value, key)
    done.get(timeout=TIMEOUT)
    done.forget()
    _, lies = stored()
    digest = min(lies)
    holders = running.app.offload.store.blobs.holders
    wait_until(lambda: len(holders(digest)) == 1, "one holder remains", TIMEOUT)
    sweep(running.app.offload.store)
    left = {info.digest: info.ttl for info in running.app.offload.store.blobs.scan()}
    assert min(left[digest] for digest in lies) > HOUR
    running.app.backend.client.rpush(key, "go")
    assert waiting.get(timeout=TIMEOUT) == len(value)


def test_without_s3_only_large_values_fail(running):
    """While S3 is unavailable, only publishing large values raises; afterwards everything works."""
    same = running.app.tasks["same"]
    middle, large = text(100 * KB), text(8 * MB)
    running.proxy.refuse()
    with pytest.raises(StoreUnavailable, match="s3://"):
        same.delay(large)
    assert same.delay(middle).get(timeout=TIMEOUT) == middle
    assert same.delay("small").get(timeout=TIMEOUT) == "small"
    running.proxy.restore()
    assert same.delay(large).get(timeout=TIMEOUT) == large
