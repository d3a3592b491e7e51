"""Round trips to Redis of each command: they are what offload costs over a network."""

from __future__ import annotations

import os

import pytest
from celery import chain

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


def test_a_task_costs_three_round_trips(wire, trips):
    """A task's arguments are read by one request, its result is stored by one, and one releases the
    message's holds.
    """
    wire.app.tasks["same"].delay(text(SMALL), text(6000))
    trips.count()
    wire.execute(wire.take())
    assert [set(request) for request in trips.requests] == [
        {"GETRANGE"},
        {"EVALSHA"},  # the result is the argument, which this process knows
        {"EVALSHA"},
    ]


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


def test_a_step_of_a_chain_costs_four_round_trips(wire, trips):
    """A step reads its argument, stores its result, holds that for the next step's message, and
    releases its own message's holds.
    """
    make, same = wire.app.tasks["make"], wire.app.tasks["same"]
    chain(make.s(SMALL), same.s(), same.s()).delay()
    wire.execute(wire.take())
    trips.count()
    wire.execute(wire.take())
    assert trips.count() == 4
