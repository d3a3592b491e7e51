"""Values that are made anew behind the scenes."""

from __future__ import annotations

import os
import threading

import pytest

from offload.dashboard.caching import BackgroundRefresh
from offload.errors import StoreUnavailable
from offload.testing.store import FakeClock
from tests.support.processes import wait_until


@pytest.fixture
def clock():
    return FakeClock(1000.0)


def settled(refreshed):
    """Return what there is once nothing is being made."""
    wait_until(lambda: not refreshed.get().busy, "it is made")
    return refreshed.get()


def test_nothing_is_made_before_somebody_asks(clock):
    """And then once, however many ask at the same time."""
    made = []
    go = threading.Event()

    def make():
        go.wait(10)
        made.append(1)
        return "value"

    threads = threading.active_count()
    refreshed = BackgroundRefresh(make, clock=clock)
    assert threading.active_count() == threads
    assert [refreshed.get().value for _ in range(20)] == [None] * 20
    assert refreshed.get().busy
    go.set()
    assert settled(refreshed).value == "value"
    assert made == [1]


def test_the_first_is_waited_for_a_little(clock):
    """A small store is shown at once; a large one does not keep a page waiting."""
    assert BackgroundRefresh(lambda: "value", clock=clock).get(10).value == "value"
    go = threading.Event()
    slow = BackgroundRefresh(lambda: go.wait(10), clock=clock)
    assert slow.get(0.01).value is None
    go.set()


def test_it_is_made_anew_when_it_is_too_old(clock):
    """Not before; nor while nobody asks."""
    made = iter(range(100))
    refreshed = BackgroundRefresh(lambda: next(made), every=10, clock=clock)
    assert settled(refreshed).value == 0
    clock.now += 9
    assert (settled(refreshed).value, refreshed.get().age) == (0, 9)
    clock.now += 500
    refreshed.get()
    assert settled(refreshed).value == 1
    assert refreshed.get().age == 0


def test_what_takes_long_is_made_less_often(clock):
    """Twenty times as long as it took but for the first time: a slow store has a rest."""
    made = []

    def make():
        made.append(1)
        clock.now += 30
        return len(made)

    refreshed = BackgroundRefresh(make, every=10, share=20, clock=clock)
    assert settled(refreshed).took == 30
    clock.now += 11
    refreshed.get()
    assert settled(refreshed).value == 2
    clock.now += 599
    assert settled(refreshed).value == 2
    clock.now += 2
    refreshed.get()
    assert settled(refreshed).value == 3


def test_after_an_error_the_old_value_stays(clock):
    """It is told with the error, and both are replaced when the store is back."""
    answers = iter(["old", StoreUnavailable("away"), "new"])

    def make():
        answer = next(answers)
        if isinstance(answer, Exception):
            clock.now += 60  # a driver that waits long: that is no reason to wait longer
            raise answer
        return answer

    refreshed = BackgroundRefresh(make, every=10, clock=clock)
    assert settled(refreshed).value == "old"
    clock.now += 11
    refreshed.get()
    kept = settled(refreshed)
    assert (kept.value, str(kept.error), kept.age) == ("old", "away", 71)
    clock.now += 11
    refreshed.get()
    kept = settled(refreshed)
    assert (kept.value, kept.error, kept.age) == ("new", None, 0)


def test_other_errors_are_logged(clock, caplog):
    """They are told as well, and what caused them can be looked up."""
    refreshed = BackgroundRefresh(lambda: 1 / 0, clock=clock)
    assert isinstance(settled(refreshed).error, ZeroDivisionError)
    assert "ZeroDivisionError" in caplog.text


def test_a_change_outdates_it(clock):
    """Also one that comes while it is being made, which may have missed it."""
    made = iter(range(100))
    began, go = threading.Event(), threading.Event()

    def make():
        began.set()
        go.wait(10)
        return next(made)

    refreshed = BackgroundRefresh(make, every=1e6, clock=clock)
    refreshed.get()
    began.wait(10)
    refreshed.invalidate()
    go.set()
    wait_until(lambda: refreshed.get().value == 1, "it is made again")
    refreshed.invalidate()
    wait_until(lambda: refreshed.get().value == 2, "it is made again")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_makes_its_own(clock):
    """While the parent is at it, and holds the lock: the child neither waits nor crashes."""
    go = threading.Event()
    parent = os.getpid()
    refreshed = BackgroundRefresh(lambda: os.getpid() if os.getpid() != parent else go.wait(10))
    refreshed.get()
    with refreshed._of_process.get()._changed:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = int(refreshed.get(10).value != os.getpid())
            finally:
                os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    go.set()
