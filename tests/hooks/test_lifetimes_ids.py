"""Messages that share an id never release what another one needs."""

from __future__ import annotations

import pytest
from celery import _state, chain, chord, group

from offload.errors import StoreUnavailable
from tests.support.wire import make_wire

BIG = list(range(2000))
HOUR = 3600.0
RETENTION = 10 * HOUR


@pytest.fixture
def wire():
    return make_wire(retention=RETENTION, grace=HOUR, conf={"result_expires": 5 * HOUR})


@pytest.fixture
def size(wire):
    @wire.app.task(name="size", shared=False)
    def size(value=(), *more):
        return len(value)

    return size


@pytest.fixture
def replaced(wire):
    """Is replaced by the signature that its argument makes, and fails without one."""
    by = []

    @wire.app.task(name="replaced", shared=False, bind=True)
    def replaced(self, value=None):
        return self.replace(by.pop()(value))

    replaced.by = by
    return replaced


def lives(wire):
    """Return the remaining lifetime of each blob in seconds."""
    return sorted(info.ttl for info in wire.hook.store.blobs.scan())


def near(seconds):
    return pytest.approx(seconds, abs=90)


REPLACEMENTS = {
    "a task": lambda size, value: size.si(value),
    "a chain": lambda size, value: chain(size.si([1]), size.si(value)),
    "a group": lambda size, value: group(size.si([1]), size.si(value)),
    "a chord": lambda size, value: chord([size.si([1]), size.si([2])], size.si(value)),
}


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_a_replacement_keeps_the_tasks_value(wire, size, replaced, kind):
    """The last task of a replacement has the replaced task's id, keeps its value while it waits,
    and releases it in the end.
    """
    replaced.by.append(lambda value: REPLACEMENTS[kind](size, value))
    replaced.delay(BIG)
    wire.execute(wire.take())
    assert lives(wire) == [near(RETENTION)]
    wire.work()
    assert lives(wire) == [near(HOUR)]


def test_a_replacement_keeps_the_tasks_callbacks(wire, size, replaced):
    """Callbacks of a replaced task move to its replacement, and their values stay."""
    replaced.by.append(lambda _: size.si([1]))
    replaced.apply_async(link=size.si(BIG), link_error=size.si([*BIG, 1]))
    wire.execute(wire.take())
    assert lives(wire) == [near(RETENTION)] * 2
    wire.work()
    assert lives(wire) == [near(HOUR)] * 2


def test_a_second_delivery_leaves_the_replacement_its_value(wire, size, replaced):
    """A second delivery of a replaced task that now fails releases nothing."""
    replaced.by.append(size.si)
    replaced.delay(BIG)
    message = wire.take()
    wire.execute(message)
    wire.execute(message)
    assert lives(wire) == [near(RETENTION)]


def test_an_id_may_be_reused(wire, size):
    """When the first of two messages with one id is done, the other keeps its value."""
    size.apply_async((BIG,), task_id="nightly")
    size.apply_async((BIG,), task_id="nightly", countdown=3 * HOUR)
    wire.execute(wire.take())
    assert lives(wire) == [near(3 * HOUR + RETENTION)]
    wire.work()
    assert lives(wire) == [near(HOUR)]


def test_a_callback_with_an_id_can_be_of_two_tasks(wire, size):
    """A signature with a fixed id that two tasks call back has its value each time."""
    callback = size.si(BIG)
    callback.freeze()
    for number in (1, 2):
        size.apply_async(([number],), link=callback)
    for _ in range(3):  # both, and the first one's callback
        last = wire.take()
        wire.execute(last)
    assert last.headers["id"] == callback.id
    assert lives(wire) == [near(RETENTION)]


def test_a_message_sent_again_keeps_everything(wire, size, monkeypatch):
    """A message that is resent while the store is unavailable keeps the holder's name of its
    values.
    """
    size.apply_async((BIG,), link=size.si([*BIG, 1]))
    blobs = wire.hook.store.blobs
    get = blobs.get

    def unavailable(*_args):
        raise StoreUnavailable("away")

    monkeypatch.setattr(wire.hook._runtime.content.reader._retrying, "_sleep", lambda _: None)
    monkeypatch.setattr(blobs, "get", unavailable)
    wire.execute(wire.take())
    assert lives(wire) == [near(RETENTION)] * 2
    monkeypatch.setattr(blobs, "get", get)
    wire.work()
    assert lives(wire) == [near(HOUR)] * 2


@pytest.mark.parametrize("task_id", (5, "任" * 150, "x" * 300, "a\nb", "\ud800"))
def test_any_id_works(wire, task_id):
    """Every id that Celery accepts can hold and release: numbers, long ones, and any characters."""

    @wire.app.task(name="silent", shared=False, ignore_result=True)
    def silent(value):
        return value

    silent.apply_async((BIG,), task_id=task_id)
    assert lives(wire) == [near(RETENTION)]
    failed, _, _ = wire.execute(wire.take())
    assert not failed
    assert lives(wire) == [near(HOUR)]


@pytest.mark.server
def test_parts_that_are_not_stored_are_released_with_the_chord(redis, monkeypatch):
    """Results of chord parts that aren't stored are kept until the body's message holds them, and
    are released with it.
    """
    wire = make_wire(
        retention=RETENTION,
        grace=HOUR,
        conf={"result_backend": redis.url},
    )
    monkeypatch.setattr(_state._tls, "current_app", wire.app)  # Celery finds the group by it
    backend = wire.app.backend
    monkeypatch.setattr(backend, "add_pending_result", lambda result, **_: result)  # nobody waits

    @wire.app.task(name="part", shared=False, ignore_result=True)
    def part(number):
        return [*BIG, number]

    @wire.app.task(name="body", shared=False)
    def body(parts):
        return sum(map(len, parts))

    result = chord(part.s(n) for n in range(3))(body.s())
    for _ in range(2):
        wire.execute(wire.take())
    blobs = wire.hook.store.blobs
    assert {name for info in blobs.scan() for name in blobs.holders(info.digest)} == {
        f"task:{result.id}"
    }
    wire.work()
    assert backend.get_result(result.id) == 6003
    assert lives(wire) == [near(HOUR)] * 3
