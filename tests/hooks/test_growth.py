"""Round trips and work that must not grow with the number of parts."""

from __future__ import annotations

import sys
import typing
from pathlib import Path

import pytest
from celery import chain

import offload
from tests.support.wire import make_wire

PARTS = 100
PACKAGE = str(Path(offload.__file__).parent)


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


def calls_of(function):
    """Return how many of offload's functions a call of *function* enters."""
    entered = 0

    def enter(frame, event, _argument):
        nonlocal entered
        entered += event == "call" and PACKAGE in frame.f_code.co_filename

    sys.setprofile(enter)
    try:
        function()
    finally:
        sys.setprofile(None)
    return entered


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


@pytest.mark.parametrize(
    ("arguments", "calls"), (({}, 1), ({"by": 1}, 6)), ids=["bare", "small argument"]
)
def test_chain_steps_without_large_values_are_not_traversed(wire, arguments, calls):
    """Publishing a step of a chain makes at most this many calls for each following step."""
    grow = wire.app.tasks["grow"]

    def calls_with(steps):
        made = [dict(grow.s(**arguments)) for _ in range(steps)]
        return calls_of(lambda: grow.apply_async(([0],), chain=made))

    calls_with(1)  # warm up
    assert calls_with(10 + PARTS) - calls_with(10) <= PARTS * calls


def test_small_values_of_many_parts_take_no_call_for_each(wire):
    """Publishing data below the threshold takes as many calls for 1,000 dicts as for 100."""
    grow = wire.app.tasks["grow"]

    def calls_with(parts):
        rows = [{"id": n, "name": f"name {n}", "tags": ["a", "b"]} for n in range(parts)]
        return calls_of(lambda: grow.apply_async((rows,), offload={"threshold": 1_000_000}))

    calls_with(100)  # warm up
    assert calls_with(1000) == calls_with(100)


def test_large_values_of_late_steps_are_found(wire):
    """A large argument of any step of a chain is stored, whatever steps precede it."""
    grow = wire.app.tasks["grow"]
    big = "x" * 5000
    steps = [grow.s(), grow.s(by=1), grow.s(by=big), grow.s()]
    result = chain(grow.s([0]), *steps).delay()
    assert big not in repr(wire.sent[0][1])
    assert wire.get(result) == [0, 0, 0, 1, big, 0]


def test_no_message_checks_what_the_store_can_do(wire):
    """The store's abilities are checked once per process, as `isinstance` with a protocol takes as
    long as a hash.
    """
    grow = wire.app.tasks["grow"]
    big = "x" * 5000

    def run(by):
        checks = 0

        def enter(frame, event, _argument):
            nonlocal checks
            code = frame.f_code
            if event == "call" and code.co_name in ("__instancecheck__", "__subclasscheck__"):
                checks += code.co_filename == typing.__file__

        sys.setprofile(enter)
        try:
            assert wire.get(grow.delay([big], by=by)) == [big, by]
        finally:
            sys.setprofile(None)
        return checks

    run(big)  # warm up
    assert run(big + "1") == 0
