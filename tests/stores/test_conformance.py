"""Every store passes the conformance suite."""

from __future__ import annotations

import os
import time

import pytest

from offload.stores import open_store
from offload.stores.file import FileStore
from offload.stores.memory import MemoryStore
from offload.stores.sqlite import SQLiteStore
from offload.stores.tiered import TieredStore
from offload.testing.processes import ProcessSuite
from offload.testing.stateful import store_machine
from offload.testing.store import (
    BlobTests,
    ExpiryTests,
    FakeClock,
    HoldTests,
    LeaseTests,
    PointerTests,
    StoreSuite,
    ThreadTests,
)
from tests.support.fake_redis import fake_redis
from tests.support.moto_s3 import moto_s3


class FakeClockSuite(StoreSuite):
    @pytest.fixture
    def clock(self):
        return FakeClock()

    @pytest.fixture
    def tick(self, clock):
        return lambda: clock.advance(0.25)


class TestMemory(FakeClockSuite):
    @pytest.fixture
    def store(self, clock):
        return MemoryStore(clock=clock)


class TestFile(FakeClockSuite, ProcessSuite):
    @pytest.fixture
    def store(self, tmp_path, clock):
        return FileStore(tmp_path / "store", clock=clock, skew=0, fsync=False)

    @pytest.fixture
    def url(self, tmp_path):
        return f"file://{tmp_path}/store"


class TestFileByItsURL(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path):
        return open_store(f"file://{tmp_path}/store?skew=0")


class TestSQLite(FakeClockSuite, ProcessSuite):
    @pytest.fixture
    def store(self, tmp_path, clock):
        store = SQLiteStore(tmp_path / "store.db", clock=clock, fsync=False)
        yield store
        store.close()

    @pytest.fixture
    def url(self, tmp_path):
        return f"sqlite://{tmp_path}/store.db"

    def test_the_same_blobs_from_spawned_processes(self, url):
        """Processes that share nothing but the URL find what each other put."""
        self.put_the_same("spawn", url)


class TestFakeRedis(StoreSuite):
    @pytest.fixture
    def store(self):
        return fake_redis()


class TestMotoS3(BlobTests, HoldTests, ExpiryTests, PointerTests, LeaseTests):
    clock, tick = FakeClockSuite.clock, FakeClockSuite.tick
    many = 50  # moto is slow

    @pytest.fixture
    def store(self, clock):
        with moto_s3(clock, skew=1) as store:
            yield store


def tiered(first, lower, **options):
    """Return two tiers; blobs of all sizes but the smallest go to the lower one."""
    return TieredStore(first, [lower], (1000,), small=0, **options)


class TestMemoryAndFile(FakeClockSuite):
    @pytest.fixture
    def store(self, tmp_path, clock):
        file = FileStore(tmp_path / "store", clock=clock, skew=0, fsync=False)
        return tiered(MemoryStore(clock=clock), file, clock=clock)


class TestMemoryAndMotoS3(BlobTests, HoldTests, ExpiryTests, PointerTests, LeaseTests):
    clock, tick = FakeClockSuite.clock, FakeClockSuite.tick
    many = TestMotoS3.many

    @pytest.fixture
    def store(self, clock):
        with moto_s3(clock, skew=1) as lower:
            yield tiered(MemoryStore(clock=clock), lower, clock=clock)


class SlowSuite(StoreSuite):
    """For servers that take a request per blob, whose time counts in whole seconds."""

    many, threads = 100, 4

    @pytest.fixture
    def tick(self):
        return lambda: time.sleep(0.1)


def own(server):
    """Return a URL with a prefix of its own: a scan then reads only this test's blobs."""
    return f"{server.url}{'&' if '?' in server.url else '?'}prefix={os.urandom(4).hex()}"


class ServerFixtures:
    @pytest.fixture
    def url(self, server):
        return own(server)

    @pytest.fixture
    def store(self, url):
        store = open_store(url)
        yield store
        store.close()


class ServerSuite(ServerFixtures, StoreSuite, ProcessSuite):
    """Everything, on one kind of server."""


@pytest.mark.server
class TestRedis(ServerSuite):
    @pytest.fixture
    def server(self, redis):
        return redis

    def test_the_same_blobs_from_spawned_processes(self, url):
        """Processes that share only the URL find each other's blobs."""
        self.put_the_same("spawn", url)


@pytest.mark.server
class TestValkey(ServerSuite):
    @pytest.fixture
    def server(self, valkey):
        return valkey


@pytest.mark.server
class TestTLS(ServerFixtures, BlobTests, LeaseTests, ThreadTests, ProcessSuite):
    """Values of any size, scripts, threads, and forks over TLS; the rest is as without."""

    @pytest.fixture
    def server(self, redis_tls):
        return redis_tls


@pytest.mark.server
class TestSentinel(ServerSuite):
    @pytest.fixture
    def server(self, sentinel):
        return sentinel


@pytest.mark.server
class TestCluster(ServerSuite):
    @pytest.fixture
    def server(self, cluster):
        return cluster


@pytest.mark.server
class TestS3(SlowSuite):
    @pytest.fixture
    def store(self, s3):
        # The remaining life is what was asked for, but S3 counts in whole seconds.
        store = open_store(s3.url(os.urandom(4).hex(), skew=1, ahead=0))
        yield store
        store.close()


@pytest.mark.server
class TestS3Processes(ProcessSuite):
    rounds = 4

    @pytest.fixture
    def url(self, s3):
        return s3.url(os.urandom(4).hex())


@pytest.mark.server
class TestRedisAndS3(SlowSuite):
    @pytest.fixture
    def store(self, redis, s3):
        store = tiered(open_store(own(redis)), open_store(s3.url(os.urandom(4).hex(), skew=1)))
        yield store
        store.close()


@pytest.mark.server
class TestClusterAndFile(StoreSuite):
    @pytest.fixture
    def store(self, cluster, tmp_path):
        store = tiered(open_store(own(cluster)), FileStore(tmp_path / "store"))
        yield store
        store.close()


@pytest.mark.server
class TestTieredProcesses(ProcessSuite):
    rounds = 4

    @pytest.fixture
    def url(self, redis, s3):
        return [own(redis), s3.url(os.urandom(4).hex())]


def make_memory():
    clock = FakeClock()
    return MemoryStore(clock=clock), clock.advance


def machine(make, **options):
    """Run the suite's state machine of random calls."""
    test = store_machine(make, **options).TestCase("runTest")
    test.runTest()


def test_memory_does_as_the_model():
    """Random calls return what the model says, on the memory store."""
    machine(make_memory, examples=100)


def test_file_does_as_the_model(tmp_path):
    """Random calls return what the model says, on files."""

    def make():
        clock = FakeClock()
        folder = tmp_path / os.urandom(4).hex()
        return FileStore(folder, clock=clock, skew=0, fsync=False), clock.advance

    machine(make, examples=50)


def test_sqlite_does_as_the_model(tmp_path):
    """Random calls return what the model says, on SQLite."""

    def make():
        clock = FakeClock()
        path = tmp_path / os.urandom(4).hex()
        return SQLiteStore(path, clock=clock, fsync=False), clock.advance

    machine(make, examples=50)


def test_fake_redis_does_as_the_model():
    """Random calls return what the model says, on fakeredis."""
    machine(lambda: (fake_redis(), None), examples=10)


def test_moto_s3_does_as_the_model():
    """Random calls return what the model says, on moto's S3."""
    clock = FakeClock()
    with moto_s3(clock, skew=0) as store:
        machine(lambda: (store, clock.advance), examples=10)


def test_tiers_do_as_the_model():
    """Random calls return what the model says, on memory in front of S3."""
    clock = FakeClock()
    with moto_s3(clock, skew=0) as lower:

        def make():
            return tiered(MemoryStore(clock=clock), lower, clock=clock), clock.advance

        machine(make, examples=40)


def test_tiers_without_versions_do_as_the_model(tmp_path):
    """Random calls return what the model says, on memory in front of files."""

    def make():
        clock = FakeClock()
        file = FileStore(tmp_path / os.urandom(4).hex(), clock=clock, skew=0, fsync=False)
        return tiered(MemoryStore(clock=clock), file, clock=clock), clock.advance

    machine(make, examples=40)


@pytest.mark.server
def test_tiers_on_servers_do_as_the_model(redis, s3):
    """Random calls return what the model says, on a Redis server in front of an S3 server."""
    store = tiered(open_store(own(redis)), open_store(s3.url("machine", skew=1)))
    machine(lambda: (store, None), examples=5)
    store.close()


@pytest.mark.server
def test_an_s3_server_does_as_the_model(s3):
    """Random calls return what the model says, on an S3 server."""
    store = open_store(s3.url("machine", skew=1, ahead=0))
    machine(lambda: (store, None), examples=5)
    store.close()


@pytest.mark.server
@pytest.mark.parametrize("name", ("redis", "valkey", "redis_tls", "sentinel", "cluster"))
def test_a_server_does_as_the_model(request, name):
    """Random calls return what the model says, on every kind of Redis server."""
    store = open_store(own(request.getfixturevalue(name)))
    machine(lambda: (store, None), examples=5)
    store.close()
