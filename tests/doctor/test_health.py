"""The health of stores: availability, latency, usage, and last sweep."""

from __future__ import annotations

import pytest

from offload.digest import digest_of
from offload.doctor import store as health
from offload.doctor.store import PINGS, inspect_store
from offload.errors import StoreUnavailable
from offload.gc import sweep
from offload.stores import open_store
from offload.stores.memory import MemoryStore
from offload.stores.tiered import TieredStore
from offload.testing.store import unique
from tests.support.servers import free_port, redis_client, redis_server


@pytest.mark.server
def test_a_redis(redis):
    """A Redis has its version, memory, policy, and number of keys, and shows no password."""
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
    """An empty Redis has 0 keys, and its memory limit is shown."""
    with redis_server(args=("--maxmemory", "20mb", "--maxmemory-policy", "allkeys-lru")) as server:
        [tier] = inspect_store(open_store(server.url)).tiers
    [capacity] = tier.capacity
    assert (capacity.keys, capacity.limit) == (0, 20 << 20)
    assert capacity.policy == "allkeys-lru"


@pytest.mark.server
def test_each_server_of_a_cluster(cluster):
    """Each server of a Cluster has its name."""
    [tier] = inspect_store(open_store(cluster.url)).tiers
    assert len(tier.capacity) == len(cluster.nodes)
    assert len({capacity.server for capacity in tier.capacity} - {""}) == len(cluster.nodes)


@pytest.mark.server
def test_the_number_of_requests(redis):
    """A store is asked once to connect, then for the latency, and once for its data."""
    store = open_store(redis.url)
    with redis_client(redis) as client:
        client.config_resetstat()
        inspect_store(store)
        calls = client.info("commandstats")
    assert calls["cmdstat_strlen"]["calls"] == PINGS + 1
    assert calls["cmdstat_info"]["calls"] == 1


def test_an_unavailable_store():
    """An unavailable store has its error in place of a latency, and is tried once."""
    store = open_store(f"redis://localhost:{free_port()}")
    state = inspect_store(store)
    [tier] = state.tiers
    assert "is unavailable" in tier.error
    assert tier.latency is None
    assert tier.capacity == ()
    assert state.last_sweep is None


@pytest.mark.server
def test_tiers_are_separate(redis, s3, tmp_path):
    """Each tier has its sizes; an unavailable one hides no others."""
    unavailable = f"redis://localhost:{free_port()}/0"
    store = open_store([redis.url, s3.url(unique("state")), unavailable], tier_sizes=[1000, 9000])
    state = inspect_store(store, [1000, 9000])
    first, second, third = state.tiers
    assert [tier.min_size for tier in state.tiers] == [0, 1000, 9000]
    assert [bool(tier.error) for tier in state.tiers] == [False, False, True]
    assert (first.tracks_holds, second.tracks_holds) == (True, False)
    assert second.latency > 0
    assert second.capacity == ()
    assert third.url == unavailable
    assert state.needs_sweeps


def test_a_sqlite_file_has_its_disks_space(tmp_path):
    """A SQLite file has its disk's free space, also before it is created, and needs no sweeps."""
    state = inspect_store(open_store(f"sqlite://{tmp_path}/store.db"))
    [tier] = state.tiers
    [capacity] = tier.capacity
    assert tier.error == ""
    assert 0 < capacity.used < capacity.limit
    assert not state.needs_sweeps


def test_a_folder_that_is_swept(tmp_path):
    """A folder has its disk's free space, also while it is empty, and its last sweep."""
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
    """Blobs that are slow by a clock of the test's."""

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
    """A slow store is asked as often as fits into a second, and at least once."""
    store = MemoryStore()
    store.blobs = Slow(seconds)
    monkeypatch.setattr(health.time, "perf_counter", lambda: store.blobs.now)
    [tier] = inspect_store(store).tiers
    assert tier.latency == pytest.approx(seconds)
    assert store.blobs.asked == asked


class Bare:
    """A third-party store with only the required protocol and errors of its own."""

    tracks_holds = False

    def __init__(self, error):
        self.error = error

    def get(self, digests, limit):
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    (
        (StoreUnavailable("away for now"), "away for now"),
        (RuntimeError("odd"), "RuntimeError: odd"),
    ),
)
def test_third_party_stores(error, message):
    """Third-party stores are asked through the protocol only, and their errors are shown."""
    store = MemoryStore()
    store.blobs = Bare(error)
    [tier] = inspect_store(store).tiers
    assert tier.error == message


def test_the_first_tier_records_the_last_sweep(tmp_path):
    """The first tier alone records the last sweep of all tiers."""
    store = TieredStore(MemoryStore(), [open_store(f"file://{tmp_path}/store")])
    sweep(store)
    assert inspect_store(store, [5]).last_sweep is not None
