"""Holds never expire while their task runs."""

from __future__ import annotations

import json
import threading

import pytest

from offload import BlobMissing, Ref
from offload.errors import StoreUnavailable
from offload.hooks.message import waits_of
from offload.hooks.renewal import Renewer
from offload.stores.memory import MemoryStore
from offload.testing.store import FakeClock
from tests.support.content import set_clock
from tests.support.wire import make_wire

BIG = list(range(2000))
HOUR = 3600.0
SERIALIZERS = ("json", "pickle", "yaml", "msgpack")


@pytest.fixture
def wire(request):
    return make_slow(getattr(request, "param", "json"))


def make_slow(serializer):
    """Return a wire whose task ``slow`` runs for a given time on the store's clock."""
    conf = {"task_serializer": serializer, "accept_content": [serializer]}
    wire = make_wire(watch=False, retention=3 * HOUR, grace=HOUR, conf=conf)
    wire.clock = FakeClock()
    wire.hook._runtime._store = MemoryStore(clock=wire.clock)
    began = wire.clock()
    set_clock(wire.hook._runtime.content, lambda: 1e9 + wire.clock() - began)
    wire.renewals = wire.hook._runtime.part(Renewer)._running.get()
    wire.renewals._thread = threading.current_thread()  # tests renew themselves
    wire.seen = []

    @wire.app.task(name="slow", shared=False, offload={"threshold": 1000})
    def slow(value: Ref, hours=0.0):
        wire.hook._runtime.part(Renewer).renew_due()
        for _ in range(int(hours * 4)):
            wire.clock.advance(HOUR / 4)
            wire.hook._runtime.part(Renewer).renew_due()
        wire.seen.append(len(value.get()))

    @wire.app.task(name="size", shared=False)
    def size(value):
        wire.seen.append(len(value))

    wire.slow, wire.size = slow, size
    return wire


def holders(wire):
    blobs = wire.hook.store.blobs
    return {name.partition("+")[0] for info in blobs.scan() for name in blobs.holders(info.digest)}


@pytest.mark.parametrize("wire", SERIALIZERS, indirect=True)
@pytest.mark.parametrize("options", ({}, {"expires": 60}, {"offload": {"retention": 60}}))
def test_a_running_task_can_read_a_reference_at_any_time(wire, options):
    """A running task can read its values at any time, whatever its message's hold, and so can the
    callbacks that it calls; afterwards all are released.
    """
    links = wire.app.conf.task_serializer in ("json", "pickle")  # others carry no signatures
    wire.slow.apply_async((BIG, 100), link=wire.size.si([*BIG, 1]) if links else None, **options)
    wire.work()
    assert wire.seen == [2000, 2001][: 1 + links]
    assert holders(wire) == set()
    assert max(info.ttl for info in wire.hook.store.blobs.scan()) <= HOUR + 60


def test_a_task_runs_where_no_thread_can_start(wire, monkeypatch):
    """A task doesn't fail if no renewal thread can start; a later task starts it."""

    def start(_thread):
        raise RuntimeError("can't start new thread")

    wire.renewals._thread = None
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        wire.slow.delay(BIG)
        wire.work()
    assert wire.seen == [2000]
    wire.slow.delay(BIG)
    wire.work()
    assert wire.seen == [2000, 2000]
    assert wire.renewals._thread.name == "offload-renew"
    assert wire.renewals.all() == []


def test_a_put_value_outlives_its_put(wire):
    """A reference whose `put` lasts longer needs no hold, and is held once that expires."""
    ref = wire.hook.put(BIG, retention=4 * HOUR)
    wire.slow.delay(ref, 100)
    wire.work()
    assert wire.seen == [2000]
    assert holders(wire) == set()


def test_a_message_that_waited_until_the_end_is_renewed_at_once(wire):
    """A task that starts in the last minute of its message's hold keeps its values."""
    wire.slow.delay(BIG, 10)
    wire.clock.advance(3 * HOUR - 30)
    wire.work()
    assert wire.seen == [2000]


def test_at_any_moment_a_second_delivery_finds_its_values(wire, monkeypatch):
    """While a task runs, its hold always lasts for at least the grace period."""
    left = []
    renew = wire.hook._runtime.part(Renewer).renew_due

    def watched():
        renew()
        left.append(min(info.ttl for info in wire.hook.store.blobs.scan()))

    monkeypatch.setattr(wire.hook._runtime.part(Renewer), "renew_due", watched)
    wire.slow.apply_async((BIG, 20), expires=60)
    wire.work()
    assert min(left) >= HOUR


def test_a_task_that_ends_in_time_costs_nothing(wire, monkeypatch):
    """Holds that last long enough cost no store call."""
    blobs = wire.hook.store.blobs
    hold, asked = blobs.hold, []
    wire.slow.delay(BIG, 1)
    monkeypatch.setattr(blobs, "hold", lambda *args: asked.append(args) or hold(*args))
    wire.work()
    assert wire.seen == [2000]
    assert not asked


def test_a_renewal_is_repeated_after_an_outage(wire, monkeypatch):
    """A renewal that failed for an unavailable store is repeated."""
    hold, failures = wire.hook.store.blobs.hold, [1] * 12

    def sometimes(*args):
        if failures:
            failures.pop()
            raise StoreUnavailable("away")
        return hold(*args)

    wire.hook._runtime.content.reader._retrying._sleep = lambda _: None
    wire.slow.apply_async((BIG, 20), expires=60)
    monkeypatch.setattr(wire.hook.store.blobs, "hold", sometimes)
    wire.work()
    assert (wire.seen, failures) == ([2000], [])


def test_a_late_renewal_is_released(wire, monkeypatch):
    """A task that ends during the renewal of its hold releases the renewed hold, too."""
    wire.slow.apply_async((BIG,), expires=60)
    add, running = wire.renewals.add, []
    monkeypatch.setattr(wire.renewals, "add", lambda d, due: running.append(d) or add(d, due))
    wire.work()
    running[0].keep(5 * HOUR)
    assert holders(wire) == set()


def test_without_renewal_values_expire(wire, monkeypatch):
    """Without renewal, values expire on this clock."""
    monkeypatch.setattr(wire.hook._runtime.part(Renewer), "_renew", lambda delivery: None)
    result = wire.slow.apply_async((BIG, 20), expires=60)
    wire.work()
    with pytest.raises(BlobMissing):
        result.get(timeout=10)


def test_a_thread_renews():
    """The thread starts with the first task that has references and wakes for the next renewal."""
    wire = make_wire(retention=60, grace=HOUR)
    renewed, others = threading.Event(), set(threading.enumerate())

    @wire.app.task(name="waits", shared=False)
    def waits(value: Ref):
        wire.calls.clear()
        hold = wire.hook.store.blobs.hold
        wire.hook.store.blobs.hold = lambda *args: (hold(*args), renewed.set())[0]
        assert renewed.wait(10)

    result = waits.apply_async((BIG,))
    wire.work()
    assert result.get(timeout=10) is None
    threads = set(threading.enumerate()) - others
    (thread,) = (each for each in threads if each.name == "offload-renew")
    assert thread.daemon


@pytest.mark.parametrize("until", (None, "soon", True, [], 1 << 60, -(1 << 60), float("nan")))
def test_a_header_with_a_nonsensical_time(wire, until):
    """A nonsensical time in the header fails the task with an offload error or does no harm."""
    wire.slow.delay(BIG, 1)
    message = wire.take()
    args, kwargs, embed = json.loads(message.body)
    embed["offload"]["until"] = until
    message.body = json.dumps([args, kwargs, embed])
    wire.execute(message)
    assert wire.seen == ([2000] if until is None else [])


def test_holders_show_how_long_a_message_may_wait(wire):
    """Holders show whether a message is about to lose its values, about to expire, or short-lived
    on purpose.
    """
    report = []
    for options in ({}, {"expires": 60}, {"countdown": 60}, {"offload": {"retention": 60}}):
        wire.slow.apply_async((BIG,), **options)
        blobs = wire.hook.store.blobs
        (info,) = blobs.scan()
        (name,) = blobs.holders(info.digest)
        report.append(waits_of(name))
        wire.work()
    assert report == [3 * HOUR, None, 3 * HOUR, 60.0]
    for other in ("put", "result:a+b.5", "task:x.5", "task:a+b.c"):
        assert waits_of(other) is None
