"""Round trips to Redis of each command: they are what offload costs over a network."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from celery import chain, signals
from fakeredis import FakeRedis
from redis import RedisCluster

from offload.digest import digest_of
from offload.errors import StoreUnavailable
from offload.hooks.release import Releaser, release
from offload.stores.redis.blobs import RedisBlobs
from offload.stores.redis.client import RedisClient, script
from tests.support.processes import wait_until
from tests.support.wire import make_wire

pytestmark = pytest.mark.server

SMALL, LARGE = 100_000, 300_000  # bytes


class Trips:
    """Counts the requests that an app's store sends, by their commands."""

    def __init__(self, store):
        self._client = store.client
        self._sent = store.client._sent
        self.requests = []
        store.client._sent = self

    def __call__(self, commands):
        if commands:
            self.requests.append([command[0] for command in commands])
        return self._sent(commands)

    def count(self):
        """Return the number of requests since the last call."""
        number = len(self.requests)
        self.requests.clear()
        return number


@pytest.fixture
def wire(redis):
    wire = make(redis)
    yield wire
    wire.hook.store.close()


def make(redis):
    """Return an app whose store is in Redis, with a process that has sent a task already."""
    url = f"{redis.url}?prefix=trips{os.urandom(4).hex()}"
    wire = make_wire(store=url, watch=False, secret="not a secret at all", stats_interval=0)

    @wire.app.task(name="size", shared=False)
    def size(value, *more):
        return len(value)

    @wire.app.task(name="same", shared=False)
    def same(value, *more):
        return value

    @wire.app.task(name="make", shared=False)
    def make(number):
        return text(number)

    wire.run(size, text(SMALL))  # the server knows the scripts, and the process its connection
    return wire


@pytest.fixture
def trips(wire):
    return Trips(wire.hook.store)


def text(size):
    return os.urandom(size // 2).hex()


def again(value):
    """Return another object with the same content."""
    return "".join([value[:1], value[1:]])


def test_a_small_new_value_is_published_in_one_round_trip(wire, trips):
    """A new value under 256 KiB is held and stored by one request, and so is a repeated one."""
    value = text(SMALL)
    wire.app.tasks["size"].delay(value)
    assert trips.requests == [["SET", "EVALSHA"]]
    assert trips.count() == 1
    wire.app.tasks["size"].delay(again(value))
    assert trips.requests == [["EVALSHA"]]  # known here, so it isn't sent again


def test_small_values_of_a_message_share_a_round_trip(wire, trips):
    """All small values of a message, in arguments and callbacks, are stored by one request."""
    size = wire.app.tasks["size"]
    size.apply_async([text(5000), text(6000)], link=size.s(text(7000)))
    assert trips.count() == 1


def test_many_small_values_of_a_message_are_asked_for_first(wire, trips):
    """Small values of 256 KiB and more together are asked for at once, and stored at once."""
    values = [text(60_000) for _ in range(20)]
    wire.app.tasks["size"].delay(*values)
    assert trips.count() == 2
    wire.app.tasks["size"].delay(*map(again, values))
    assert trips.count() == 1


def test_a_large_new_value_is_asked_for_first(wire, trips):
    """A value of 256 KiB and more is sent only if the store lacks it."""
    value = text(LARGE)
    wire.app.tasks["size"].delay(value)
    assert trips.count() == 2
    wire.app.tasks["size"].delay(again(value))
    assert trips.count() == 1


@pytest.fixture
def worker(wire, monkeypatch):
    """Have the process be a worker's. No thread sends what waits for a request."""
    monkeypatch.setattr("offload.hooks.release._DEFERRED", 3600.0)
    wire.hook._runtime.is_worker = True
    return wire


def commands(trips):
    return [sorted(set(request)) for request in trips.requests]


def test_a_task_costs_two_round_trips(worker, trips):
    """A task's arguments are read by one request, which also releases the values of the task
    before, and its result is stored by another.
    """
    for _ in range(2):
        worker.app.tasks["same"].delay(text(SMALL), text(6000))
    first, second = worker.take(), worker.take()
    worker.execute(first)
    trips.count()
    worker.execute(second)
    assert commands(trips) == [
        ["EVALSHA", "GETRANGE"],  # the release, after what is read
        ["EVALSHA"],  # the result is the argument, which this process knows
    ]
    assert len(worker.hook.store.client._deferred) == 1  # its own release waits


def test_a_small_result_costs_no_round_trip(worker, trips):
    """A task with a small result makes one request; the next one's carries its release."""
    for _ in range(2):
        worker.app.tasks["size"].delay(text(SMALL))
    first, second = worker.take(), worker.take()
    worker.execute(first)
    trips.count()
    worker.execute(second)
    assert commands(trips) == [["EVALSHA", "GETRANGE"]]


def test_releases_of_several_tasks_share_a_round_trip(worker, trips):
    """If tasks make no requests, as their values are in the node cache, one request releases the
    values of all of them.
    """
    refs = [hold(worker, holder) for holder in ("task:1", "task:2", "task:3")]
    for ref, holder in zip(refs, ("task:1", "task:2", "task:3"), strict=True):
        defer(worker, ref, holder)
    trips.count()
    worker.hook._runtime.content.holds.release_deferred()
    assert trips.requests == [["EVALSHA"] * 3]
    assert [holders(worker, ref) for ref in refs] == [{"put"}] * 3


def hold(wire, holder):
    """Store a value, and hold it; return its reference."""
    ref = wire.hook.put(text(5000))
    wire.hook.store.blobs.hold([ref.digest], 3600.0, holder)
    return ref


def defer(wire, ref, holder):
    assert wire.hook._runtime.content.holds.release([ref], holder, 60.0, later=True)


def holders(wire, ref):
    """Return the holders of a value, read by another client, whose requests carry nothing."""
    key = f"{wire.hook.store.client.prefix}:holds:{{{ref.digest}}}"
    return {name.decode() for name in wire.hook.store.client.driver().zrange(key, 0, -1)}


def test_a_release_that_no_request_carries_is_sent_soon(worker, monkeypatch):
    """If a worker's process makes no more requests, a thread releases what waits."""
    monkeypatch.setattr("offload.hooks.release._DEFERRED", 0.01)
    ref = hold(worker, "task:1")
    release(worker.hook._runtime, [ref], "task:1", later=True)
    wait_until(lambda: holders(worker, ref) == {"put"}, "the value is released")


@pytest.mark.parametrize("signal", (signals.worker_process_shutdown, signals.worker_shutdown))
def test_no_release_is_lost_when_a_process_ends(worker, signal):
    """A worker's process that ends releases what waits, before it exits."""
    ref = hold(worker, "task:1")
    release(worker.hook._runtime, [ref], "task:1", later=True)
    assert holders(worker, ref) == {"put", "task:1"}
    signal.send(sender=None)
    assert holders(worker, ref) == {"put"}


def test_a_release_is_carried_again_if_its_request_failed(worker, monkeypatch):
    """What a request carried that failed is released by the next one."""
    ref = hold(worker, "task:1")
    defer(worker, ref, "task:1")
    with monkeypatch.context() as broken:
        broken.setattr("offload.stores.redis.client.send", refuse)
        with pytest.raises(StoreUnavailable):
            worker.hook.store.blobs.hold([ref.digest], 60.0, "task:2")
        with pytest.raises(StoreUnavailable):
            worker.hook._runtime.content.holds.release_deferred()
    worker.hook.store.blobs.hold([ref.digest], 60.0, "task:3")
    assert holders(worker, ref) == {"put", "task:3"}


def refuse(*_given):
    raise ConnectionError


def test_a_release_is_carried_again_if_the_server_lacks_the_script(worker):
    """A server that lost its scripts, as after a failover, gets the text by the next request."""
    ref = hold(worker, "task:1")
    worker.hook.store.client.driver().script_flush()
    defer(worker, ref, "task:1")
    worker.hook._runtime.content.holds.release_deferred()
    assert holders(worker, ref) == {"put"}


def test_a_refused_release_is_counted(worker):
    """A release that the server refuses isn't repeated, and is counted."""
    ref = hold(worker, "task:1")
    worker.hook.store.client.driver().set(f"{worker.hook.store.client.prefix}:holds:{{b3:no}}", 1)
    client = worker.hook.store.client
    keys = [f"{client.prefix}:{kind}:{{b3:no}}" for kind in ("blob", "holds", "place")]
    assert client.defer_script(script("release"), keys, ("task:1", 60_000))
    defer(worker, ref, "task:1")
    worker.hook._runtime.part(Releaser)._flush()
    assert holders(worker, ref) == {"put"}
    assert worker.hook._runtime.counters.snapshot()["releases_failed"] == 1
    assert not client._deferred


def test_counters_ride_along_with_releases(worker):
    """A request that carries a release carries counters as well."""
    counted = []
    source = SimpleNamespace(next_batch=lambda: 1, requeue=counted.append)
    worker.hook.store.client.piggyback(source, lambda _batch: ("ECHO", "counted"))
    trips = Trips(worker.hook.store)
    ref = hold(worker, "task:1")
    defer(worker, ref, "task:1")
    trips.count()
    worker.hook.store.blobs.hold([ref.digest], 60.0, "task:2")
    assert trips.requests == [["EVALSHA", "EVALSHA", "ECHO"]]
    assert holders(worker, ref) == {"put", "task:2"}


def test_where_a_release_could_hold_up_a_request_it_waits_for_none():
    """In a Cluster, and where writes wait for replicas, a value is released at once, and so is one
    of many blobs.
    """
    digests = [digest_of([bytes([number])]) for number in range(101)]

    def later(client, number=1):
        return RedisBlobs(client).release_later(digests[:number], "task:1", 60.0)

    assert later(RedisClient(FakeRedis, "redis://"))
    assert not later(RedisClient(FakeRedis, "redis://"), 101)
    assert not later(RedisClient(FakeRedis, "redis://", replicas=1))
    assert not later(RedisClient(lambda: RedisCluster.__new__(RedisCluster), "redis://"))


def test_a_new_result_is_stored_in_one_round_trip(wire, trips):
    """A small result is held and stored by one request."""
    wire.app.tasks["make"].delay(SMALL)
    trips.count()
    wire.execute(wire.take())
    assert trips.requests == [["SET", "EVALSHA"]]


def test_a_result_is_read_in_one_round_trip(wire, trips):
    """The reader of a result reads its value by one request."""
    result = wire.app.tasks["make"].delay(SMALL)
    wire.work()
    trips.count()
    assert len(result.get(timeout=10)) == SMALL
    assert trips.count() == 1


def test_a_step_of_a_chain_costs_three_round_trips(worker, trips):
    """A step reads its argument, stores its result, and holds that for the next step's message. One
    of these requests releases the message of the step before.
    """
    make, same = worker.app.tasks["make"], worker.app.tasks["same"]
    chain(make.s(SMALL), same.s(), same.s()).delay()
    worker.execute(worker.take())
    trips.count()
    worker.execute(worker.take())
    assert trips.count() == 3
