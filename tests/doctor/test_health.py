"""Stores are looked at: whether they answer, how fast, how full, when they were swept."""

from __future__ import annotations

import pytest

from offload.digest import digest_of
from offload.doctor import health
from offload.doctor.health import PINGS, inspect_store
from offload.errors import StoreUnavailable
from offload.gc import sweep
from offload.stores import open_store
from offload.stores.memory import MemoryStore
from offload.stores.tiered import TieredStore
from offload.testing.store import unique
from tests.support.servers import free_port, redis_client, redis_server


@pytest.mark.server
def test_a_redis(redis):
    """Its version, memory and policy, the keys of its own database, and no password."""
    with redis_client(redis) as client:
        client.config_set("requirepass", "hidden")
        client.auth("hidden")
        client.select(7)
        client.flushdb()
        try:
            url = f"redis://:hidden@{redis.host}:{redis.port}/7"
            store = open_store(url)
            content = b"a blob"
            store.blobs.put({digest_of([content]): [content]}, 60)
            state = inspect_store(store)
            keys = client.dbsize()
        finally:
            client.config_set("requirepass", "")
    [tier] = state.tiers
    [capacity] = tier.capacity
    assert (tier.error, tier.min_size, tier.tracks_holds) == ("", 0, True)
    assert 0 < tier.latency < 60
    assert capacity.kind.startswith("Redis ")
    assert capacity.used > 100_000
    assert capacity.limit is None
    assert capacity.policy == "noeviction"
    assert (capacity.evicted, capacity.keys) == (0, keys)
    assert keys >= 1
    assert not state.needs_sweeps
    assert "hidden" not in repr(state)


@pytest.mark.server
def test_a_redis_that_is_empty_and_limited():
    """No keys is 0, and the limit is told."""
    with redis_server(args=("--maxmemory", "20mb", "--maxmemory-policy", "allkeys-lru")) as server:
        [tier] = inspect_store(open_store(server.url)).tiers
    [capacity] = tier.capacity
    assert (capacity.keys, capacity.limit) == (0, 20 << 20)
    assert capacity.policy == "allkeys-lru"


@pytest.mark.server
def test_each_server_of_a_cluster(cluster):
    """By its name."""
    [tier] = inspect_store(open_store(cluster.url)).tiers
    assert len(tier.capacity) == len(cluster.nodes)
    assert len({capacity.server for capacity in tier.capacity} - {""}) == len(cluster.nodes)


@pytest.mark.server
def test_how_often_a_store_is_asked(redis):
    """Once to connect, then for the latency, and once for what it says of itself."""
    store = open_store(redis.url)
    with redis_client(redis) as client:
        client.config_resetstat()
        inspect_store(store)
        calls = client.info("commandstats")
    assert calls["cmdstat_strlen"]["calls"] == PINGS + 1
    assert calls["cmdstat_info"]["calls"] == 1


def test_a_store_that_does_not_answer():
    """Its error in place of a latency, told once and not waited for again."""
    store = open_store(f"redis://localhost:{free_port()}")
    state = inspect_store(store)
    [tier] = state.tiers
    assert "does not answer" in tier.error
    assert tier.latency is None
    assert tier.capacity == ()
    assert state.last_sweep is None


@pytest.mark.server
def test_tiers_are_told_apart(redis, s3, tmp_path):
    """Each with what goes there; one that is away hides no other."""
    away = f"redis://localhost:{free_port()}/0"
    store = open_store([redis.url, s3.url(unique("state")), away], tier_sizes=[1000, 9000])
    state = inspect_store(store, [1000, 9000])
    first, second, third = state.tiers
    assert [tier.min_size for tier in state.tiers] == [0, 1000, 9000]
    assert [bool(tier.error) for tier in state.tiers] == [False, False, True]
    assert (first.tracks_holds, second.tracks_holds) == (True, False)
    assert second.latency > 0
    assert second.capacity == ()
    assert third.url == away
    assert state.needs_sweeps


def test_a_folder_that_is_swept(tmp_path):
    """The room on its disk, also before there is anything in it; and who swept it."""
    store = open_store(f"file://{tmp_path}/store")
    state = inspect_store(store)
    [tier] = state.tiers
    [capacity] = tier.capacity
    assert tier.error == ""
    assert 0 < capacity.used < capacity.limit
    assert state.last_sweep is None
    assert state.needs_sweeps
    sweep(store)
    assert inspect_store(store).last_sweep.ended is not None


class Slow:
    """Blobs that take their time by a clock of the test's."""

    tracks_holds = True

    def __init__(self, seconds):
        self.seconds, self.now, self.asked = seconds, 0.0, 0

    def peek(self, digests, size):
        self.asked += 1
        self.now += self.seconds
        return [None]

    def find(self, prefix):
        return iter(())


@pytest.mark.parametrize(("seconds", "asked"), ((0.01, PINGS + 1), (3.0, 2)))
def test_a_slow_store_is_asked_less(monkeypatch, seconds, asked):
    """As often as fits in a second, and once at least."""
    store = MemoryStore()
    store.blobs = Slow(seconds)
    monkeypatch.setattr(health.time, "perf_counter", lambda: store.blobs.now)
    [tier] = inspect_store(store).tiers
    assert tier.latency == pytest.approx(seconds)
    assert store.blobs.asked == asked


class Bare:
    """A store of others', that knows the protocol alone and fails in its own way."""

    tracks_holds = False

    def __init__(self, error):
        self.error = error

    def get(self, digests, limit):
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    (
        (StoreUnavailable("away for now"), "away for now"),
        (RuntimeError("odd"), "RuntimeError: odd"),
    ),
)
def test_stores_of_others(error, said):
    """Are asked by what every store has; what they raise is told."""
    store = MemoryStore()
    store.blobs = Bare(error)
    [tier] = inspect_store(store).tiers
    assert tier.error == said


def test_the_first_tier_alone_keeps_the_note(tmp_path):
    """Of the last sweep, for all tiers."""
    store = TieredStore(MemoryStore(), [open_store(f"file://{tmp_path}/store")])
    sweep(store)
    assert inspect_store(store, [5]).last_sweep is not None
