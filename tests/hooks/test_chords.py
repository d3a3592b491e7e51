"""In a chord that outlasts result_expires, results of parts last until the last part returns."""

from __future__ import annotations

import pytest
from celery import _state, chain, chord
from celery.backends.base import KeyValueStoreBackend

from offload.hooks.release import PartKeeper
from offload.stores.memory import MemoryStore
from offload.testing.store import FakeClock
from tests.support.content import set_clock
from tests.support.wire import make_wire

pytestmark = pytest.mark.server
DAY = 86400.0
PARTS = 5


@pytest.fixture(params=(True, False), ids=("ordered", "unordered"))
def wire(request, valkey, monkeypatch):
    conf = {
        "result_backend": valkey.url,
        "result_expires": DAY,
        "result_backend_transport_options": {"result_chord_ordered": request.param},
        "redis_retry_on_timeout": False,
    }
    wire = make_wire(watch=False, grace=60, conf=conf)
    monkeypatch.setattr(_state._tls, "current_app", wire.app)
    monkeypatch.setattr(wire.app.backend, "add_pending_result", lambda result, **_: result)
    wire.clock = FakeClock()
    wire.hook._runtime._store = MemoryStore(clock=wire.clock)
    set_clock(wire.hook._runtime.content, lambda: 1e9 + wire.clock())
    wire.hook._runtime.clock = lambda: 1e9 + wire.clock()

    @wire.app.task(name="part", shared=False)
    def part(number):
        return list(range(number, 2000))

    @wire.app.task(name="silent", shared=False, ignore_result=True)
    def silent(number):
        return list(range(number, 2000))

    @wire.app.task(name="total", shared=False)
    def total(parts):
        return sum(map(len, parts))

    wire.part, wire.silent, wire.total = part, silent, total
    return wire


def holders(wire):
    blobs = wire.hook.store.blobs
    return {name.partition(":")[0] for info in blobs.scan() for name in blobs.holders(info.digest)}


HEADERS = {
    "results that are stored": lambda wire: [wire.part.s(n) for n in range(PARTS)],
    "results that are ignored": lambda wire: [wire.silent.s(n) for n in range(PARTS)],
    "chains": lambda wire: [chain(wire.total.s([[1]]), wire.part.si(n)) for n in range(PARTS)],
}


@pytest.mark.parametrize("kind", HEADERS)
def test_early_parts_last_as_long_as_the_chord(wire, kind):
    """Each part that returns extends the earlier results by result_expires, as in Celery; in the
    end all of them are released.
    """
    result = chord(HEADERS[kind](wire))(wire.total.s())
    messages = iter(wire.take, None)
    for n, message in enumerate(messages):
        wire.execute(message)
        if n % 2 or kind != "chains":
            wire.clock.advance(0.9 * DAY)
        wire.hook._runtime._contents = None  # another process
        set_clock(wire.hook._runtime.content, lambda: 1e9 + wire.clock())
        if n % 3 == 0:
            wire.hook._runtime.part(PartKeeper)._extended.clear()
    assert wire.app.backend.get_result(result.id) == sum(2000 - n for n in range(PARTS))
    assert holders(wire) <= {"result"}


def test_early_parts_expire_without_the_extension(wire, monkeypatch):
    """Without the extension the results would expire."""
    monkeypatch.setattr(wire.hook._runtime.part(PartKeeper), "_extend", lambda *_: None)
    chord(HEADERS["results that are stored"](wire))(wire.total.s())
    for _ in range(PARTS):
        wire.execute(wire.take())
        wire.clock.advance(0.9 * DAY)
    assert wire.app.backend.client is not None
    assert wire.take() is None  # its message would refer to lost values


def test_a_quick_chord_costs_nothing(wire, monkeypatch):
    """Parts that return quickly ask neither Redis nor the store about other parts."""
    monkeypatch.setattr(
        wire.hook._runtime.part(PartKeeper), "_extend", lambda *_: pytest.fail("asked")
    )
    result = chord(HEADERS["results that are stored"](wire))(wire.total.s())
    wire.work()
    assert wire.app.backend.get_result(result.id) == sum(2000 - n for n in range(PARTS))


@pytest.mark.skipif(not hasattr(KeyValueStoreBackend, "chord_expires"), reason="older Celery")
def test_parts_in_other_backends_last_as_long_as_in_celery(monkeypatch):
    """Where each part of a chord is a result of its own, its value is held as long as Celery keeps
    it: for result_chord_expires if that is longer than result_expires.
    """
    wire = make_wire(watch=False, conf={"result_expires": 60, "result_chord_expires": DAY})
    monkeypatch.setattr(_state._tls, "current_app", wire.app)

    @wire.app.task(name="part", shared=False)
    def part(number):
        return list(range(number, 2000))

    @wire.app.task(name="total", shared=False)
    def total(parts):
        return sum(map(len, parts))

    result = chord([part.s(0), part.s(1)])(total.s())
    wire.execute(wire.take())
    (info,) = wire.hook.store.blobs.scan()
    assert info.ttl >= DAY
    part.delay(2)
    wire.work()
    assert result.get(timeout=10) == 3999
    assert min(info.ttl for info in wire.hook.store.blobs.scan()) < 0.01 * DAY
