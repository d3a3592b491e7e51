"""Redis with S3 below it, on real servers: many processes at once, and outages."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from offload.digest import digest_of
from offload.errors import BlobMissing, StoreUnavailable
from offload.stores import open_store
from offload.testing.store import HOUR, blobs, contents
from tests.support.processes import wait_until
from tests.support.proxy import Proxy
from tests.support.servers import redis_client
from tests.support.wire import make_wire

pytestmark = pytest.mark.server

LARGE = 100 << 10
SECONDS = 12.0
JOIN = 60.0


@pytest.fixture
def urls(redis, s3):
    """Return the URLs of separate stores for each test."""
    return [f"{redis.url}?prefix={os.urandom(4).hex()}", s3.url(os.urandom(4).hex())]


# ------------------------------------------------------------------ many processes


CONTENTS = [bytes([number]) * LARGE for number in range(6)]
BLOBS = {digest_of([content]): content for content in CONTENTS}


def publish(urls, results):
    """Hold, store, read, and release in a loop; assert that no held blob is missing."""
    store, seen = open_store(urls, tier_sizes=(1,)), Counter()
    chance, deadline = random.Random(os.getpid()), time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        holder = f"task:{os.getpid()}-{seen['turns']}"
        some = chance.sample(list(BLOBS), chance.randint(1, 3))
        missing = store.blobs.hold(some, HOUR, holder)
        seen["stored"] += len(missing)
        if missing:
            store.blobs.put({digest: [BLOBS[digest]] for digest in missing}, HOUR)
        time.sleep(chance.choice((0, 0.01)))  # lets sweepers run at random moments
        assert contents(store, some) == [BLOBS[digest] for digest in some]
        assert store.blobs.hold(some, HOUR, holder) == set()
        store.blobs.release(some, holder, 0.001)
        seen["turns"] += 1
    results.put(seen)


def sweep(urls, results):
    store, seen = open_store(urls, tier_sizes=(1,)), Counter()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        seen["swept"] += sum(1 for _ in store.sweep())
    results.put(seen)


def test_nothing_that_is_held_is_swept(urls):
    """However publishers and sweepers in several processes interleave, held blobs are there."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [
        context.Process(target=target, args=(urls, results))
        for target in (publish, publish, publish, sweep, sweep)
    ]
    for child in children:
        child.start()
    total = Counter()
    for child in children:
        child.join(SECONDS + JOIN)
    assert [child.exitcode for child in children] == [0] * 5
    for _ in children:
        total += results.get(timeout=JOIN)
    print(dict(total))
    assert total["swept"] > 10
    assert total["stored"] > 10
    store = open_store(urls)
    time_over = lambda: sum(1 for _ in store.sweep()) == 0 and not list(store.blobs.scan())
    wait_until(time_over, "no blob remains without holds")
    store.close()


def test_many_processes_store_the_same_blob_at_once(urls, monkeypatch):
    """Of many processes that store the same new blob at once, each needs at most two uploads."""
    store, number = open_store(urls, tier_sizes=(1,)), 40
    (lower,) = (tier.store for tier in store._lower)
    uploads, ask = Counter(), lower.client.ask

    def counted(operation, *args, **options):
        uploads[threading.get_ident()] += operation == "put_object"
        return ask(operation, *args, **options)

    monkeypatch.setattr(lower.client, "ask", counted)
    together = threading.Barrier(number)

    def put(turn):
        store.blobs.hold(list(BLOBS)[:1], HOUR, f"task:{turn}")
        together.wait(JOIN)
        store.blobs.put({digest: [BLOBS[digest]] for digest in list(BLOBS)[:1]}, HOUR)

    with ThreadPoolExecutor(number) as pool:
        for done in [pool.submit(put, turn) for turn in range(number)]:
            done.result()
    assert max(uploads.values()) <= 2
    assert contents(store, list(BLOBS)[:1]) == CONTENTS[:1]
    store.close()


# ------------------------------------------------------------------ outages


@pytest.fixture
def proxy(s3):
    with Proxy(s3.port) as proxy:
        yield proxy


@pytest.fixture
def store(redis, s3, proxy):
    lower = s3.url(
        os.urandom(4).hex(), port=proxy.port, max_attempts=1, connect_timeout=3, read_timeout=3
    )
    store = open_store([f"{redis.url}?prefix={os.urandom(4).hex()}", lower])
    yield store
    store.close()


@pytest.mark.parametrize("how", ("refuse", "blackhole"))
def test_without_s3_small_values_work(store, proxy, how):
    """While S3 is unavailable, only its values are; afterwards everything works."""
    old, new, small = blobs(2, LARGE), blobs(2, LARGE), blobs(5, 1000)
    store.blobs.put(old, HOUR, value_size=1 << 20)
    getattr(proxy, how)()
    for call in (
        lambda: store.blobs.put(new, HOUR, value_size=1 << 20),
        lambda: contents(store, old),
        lambda: contents(store, list(old)[:1]),
        lambda: store.blobs.hold(list(old), 9 * HOUR),
        lambda: list(store.sweep()),
    ):
        with pytest.raises(StoreUnavailable, match="s3://"):
            call()
    store.blobs.put(small, HOUR, value_size=1000)
    assert contents(store, small) == [content for (content,) in small.values()]
    assert store.blobs.hold([*old, *new, *small], HOUR, "task:1") == set(new)
    assert store.pointers.swap("p", None, b"1")
    proxy.restore()
    store.blobs.put(new, HOUR, value_size=1 << 20)
    many = {**old, **new, **small}
    assert contents(store, many) == [content for (content,) in many.values()]
    assert store.blobs.hold(list(many), 9 * HOUR, "task:1") == set()
    assert list(store.sweep()) == []


def test_without_redis_nothing_works(s3, redis):
    """Without the first tier, every call raises StoreUnavailable."""
    with Proxy(redis.port) as proxy:
        store = open_store([proxy.url, s3.url(os.urandom(4).hex())])
        many = blobs(2, LARGE)
        store.blobs.put(many, HOUR, value_size=1 << 20)
        proxy.refuse()
        for call in (
            lambda: store.blobs.put(many, HOUR, value_size=1 << 20),
            lambda: store.blobs.hold(list(many), HOUR),
            lambda: contents(store, many),
            lambda: list(store.sweep()),
        ):
            with pytest.raises(StoreUnavailable, match="redis://"):
                call()
        proxy.restore()
        assert contents(store, many) == [content for (content,) in many.values()]
        store.close()


def test_an_emptied_redis(store, redis):
    """Blobs without a record in an emptied Redis aren't swept, and can be read and stored."""
    many = blobs(3, LARGE)
    store.blobs.hold(list(many), HOUR, "task:1")
    store.blobs.put(many, HOUR, value_size=1 << 20)
    with redis_client(redis) as client:
        client.flushall()
    assert list(store.sweep()) == []
    assert contents(store, many) == [content for (content,) in many.values()]
    assert store.blobs.hold(list(many), HOUR, "task:1") == set(many)
    store.blobs.put(many, HOUR, value_size=1 << 20)
    assert store.blobs.hold(list(many), HOUR, "task:1") == set()
    assert contents(store, many) == [content for (content,) in many.values()]
    store.blobs.release(list(many), "task:1", 0.001)
    wait_until(lambda: sum(1 for _ in store.sweep()) == 3, "the blobs are swept")


# ------------------------------------------------------ deletions by others


@pytest.mark.parametrize("lower", ("s3", "files"))
@pytest.mark.parametrize("removed", ("all", "some"))
def test_one_publish_restores_deleted_objects(lower, removed, valkey, s3, tmp_path):
    """A lifecycle rule or an operator that deletes objects fails one task: the first miss checks
    all chunks of the value, so the next publish uploads exactly the missing ones.
    """
    first = f"{valkey.url}?prefix={os.urandom(4).hex()}"
    below = s3.url(os.urandom(4).hex()) if lower == "s3" else f"file://{tmp_path}"
    wire = make_wire(store=[first, below], tier_sizes=[1 << 20], watch=False, cache="off")

    @wire.app.task(name="size", shared=False)
    def size(value):
        return len(value)

    value = random.Random(1).randbytes(20 << 20)  # five chunks
    lowest = open_store(below).blobs
    assert wire.run(size, value) == len(value)
    chunks = sorted(info.digest for info in lowest.scan())
    gone = chunks if removed == "all" else chunks[1::2]
    lowest.delete(gone)
    with pytest.raises(BlobMissing):
        wire.run(size, value)
    before = wire.hook.counters.snapshot()["blobs_uploaded"]
    assert wire.run(size, value) == len(value)
    assert wire.hook.counters.snapshot()["blobs_uploaded"] - before == len(gone)
    assert sorted(info.digest for info in lowest.scan()) == chunks
