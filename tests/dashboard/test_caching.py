"""Values that are refreshed in the background."""

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
    """Return the current value once no refresh is running."""
    wait_until(lambda: not refreshed.get().busy, "the refresh has finished")
    return refreshed.get()


def test_nothing_is_computed_before_the_first_request(clock):
    """Nothing is computed before the first request, and then once for all concurrent ones."""
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


def test_the_first_value_is_waited_for_briefly(clock):
    """The first value is waited for briefly, so that a small store is shown at once and a large one
    doesn't block.
    """
    assert BackgroundRefresh(lambda: "value", clock=clock).get(10).value == "value"
    go = threading.Event()
    slow = BackgroundRefresh(lambda: go.wait(10), clock=clock)
    assert slow.get(0.01).value is None
    go.set()


def test_an_old_value_is_refreshed(clock):
    """A value is refreshed when it is too old, but not earlier or without requests."""
    made = iter(range(100))
    refreshed = BackgroundRefresh(lambda: next(made), every=10, clock=clock)
    assert settled(refreshed).value == 0
    clock.now += 9
    assert (settled(refreshed).value, refreshed.get().age) == (0, 9)
    clock.now += 500
    refreshed.get()
    assert settled(refreshed).value == 1
    assert refreshed.get().age == 0


def test_a_slow_value_is_refreshed_less_often(clock):
    """A refresh follows at the earliest after twenty times the duration of the last one, except the
    first, to spare slow stores.
    """
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
    """After an error, the old value is returned with the error; both are replaced when the store is
    back.
    """
    answers = iter(["old", StoreUnavailable("away"), "new"])

    def make():
        answer = next(answers)
        if isinstance(answer, Exception):
            clock.now += 60  # a driver with a long timeout: no reason for a longer pause
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
    """Other errors are returned, too, and logged with their cause."""
    refreshed = BackgroundRefresh(lambda: 1 / 0, clock=clock)
    assert isinstance(settled(refreshed).error, ZeroDivisionError)
    assert "ZeroDivisionError" in caplog.text


def test_a_change_outdates_it(clock):
    """A change makes the value outdated, also during a refresh that may have missed it."""
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
    wait_until(lambda: refreshed.get().value == 1, "the value is refreshed")
    refreshed.invalidate()
    wait_until(lambda: refreshed.get().value == 2, "the value is refreshed")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_computes_its_own(clock):
    """A child that is forked during a refresh, with the lock held, neither waits nor crashes."""
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
