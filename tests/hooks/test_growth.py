"""Round trips and work that must not grow with the number of parts."""

from __future__ import annotations

import pytest
from celery import chain

from tests.support.wire import make_wire

PARTS = 100


@pytest.fixture
def wire():
    wire = make_wire()

    @wire.app.task(name="total", shared=False)
    def total(values, *more, **named):
        return sum(map(len, [*values, *more, *named.values()]))

    @wire.app.task(name="grow", shared=False)
    def grow(value, by=0):
        return [*value, by]

    return wire


@pytest.mark.parametrize("where", ("list", "args", "kwargs"))
def test_a_messages_values_are_fetched_in_one_round_trip(wire, where):
    """Small values of one message are read in one round trip, wherever its references are."""
    refs = [wire.hook.put(f"{n:04}" * 500) for n in range(PARTS)]
    total = wire.app.tasks["total"]
    if where == "list":
        sent = total.delay(refs)
    elif where == "args":
        sent = total.delay([], *refs)
    else:
        sent = total.delay([], **{f"x{n}": ref for n, ref in enumerate(refs)})
    message = wire.take()
    wire.calls.clear()
    wire.execute(message)
    assert wire.calls.count("get") == 1
    assert sent.get(timeout=10) == PARTS * 2000


def test_chain_steps_without_large_values_are_not_traversed(wire, monkeypatch):
    """Publishing a step of a chain makes one cheap check of each following step."""
    looked_at = []
    runtime = wire.app._offload
    options = runtime.options
    monkeypatch.setattr(runtime, "options", lambda *a: looked_at.append(a) or options(*a))
    grow = wire.app.tasks["grow"]
    steps = [grow.s() for _ in range(PARTS)]
    result = chain(grow.s([0]), *steps).delay()
    assert len(looked_at) < 5
    assert wire.get(result) == [0] * (PARTS + 2)


def test_large_values_of_late_steps_are_found(wire):
    """A large argument of any step of a chain is stored, whatever steps precede it."""
    grow = wire.app.tasks["grow"]
    big = "x" * 5000
    steps = [grow.s(), grow.s(by=1), grow.s(by=big), grow.s()]
    result = chain(grow.s([0]), *steps).delay()
    assert big not in repr(wire.sent[0][1])
    assert wire.get(result) == [0, 0, 0, 1, big, 0]
