"""Figures over time, as charts draw them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from offload.dashboard.caching import TTLCache
from offload.dashboard.statistics import Timeline
from offload.errors import StoreUnavailable
from offload.metrics.report import Figures
from tests.support.processes import wait_until

ONE, TWO = Figures({"values_seen": 1}), Figures({"values_seen": 2})


def drawn(found, *, begin=None, now=10_000.0, seconds=60):
    figures = Timeline.filled(seconds, found, begin, now).figures
    return {at: each["values_seen"] for at, each in figures.items()}


def test_a_pause_is_zero():
    """A pause is drawn as zero, not as a line across it; so is the time since then."""
    assert drawn({60: ONE, 240: TWO}, now=370.0) == {60: 1, 120: 0, 180: 0, 240: 2, 300: 0}


def test_the_whole_range_is_drawn():
    """A chart begins with its range, and entries before it aren't drawn."""
    found = {60: ONE, 240: ONE, 360: TWO}
    assert drawn(found, begin=130, now=430) == {180: 0, 240: 1, 300: 0, 360: 2} | {120: 0}


def test_a_single_step_has_a_width():
    """A single minute, hour, or day is drawn among its neighbors, not as one dot."""
    assert drawn({6000: ONE}, now=6030.0) == dict.fromkeys((5760, 5820, 5880, 5940), 0) | {6000: 1}
    for seconds in (3600, 86400):
        at = seconds * 100
        single = drawn({at: ONE}, now=at + 5.0, seconds=seconds)
        assert len(single) == 5
        assert single[at] == 1


def test_the_current_minute_is_omitted():
    """The current minute is omitted, unless it is the only one, as it would look like a drop; the
    current hour is shown.
    """
    assert 660 not in drawn({600: TWO, 660: ONE}, now=690)
    assert drawn({600: TWO, 660: ONE}, now=720)[660] == 1
    assert drawn({660: ONE}, now=690)[660] == 1
    assert drawn({36000: TWO, 39600: ONE}, now=40000, seconds=3600)[39600] == 1


def test_nothing_is_nothing():
    """Without entries nothing is drawn."""
    assert drawn({}) == {}


def test_answers_are_cached():
    """Each key is read once in a while, few keys are cached, and errors are not."""
    read, now = [], [0.0]

    def answer(key):
        read.append(key)
        if key == "bad":
            raise ValueError(key)
        return key * 2

    recent = TTLCache(answer, 2.0, most=2, clock=lambda: now[0])
    assert [recent.get("a"), recent.get("a"), recent.get("b")] == ["aa", "aa", "bb"]
    assert read == ["a", "b"]
    now[0] = 2.0
    recent.get("a")
    assert read == ["a", "b", "a"]
    for _ in range(2):
        try:
            recent.get("bad")
        except ValueError:
            continue
    assert read[3:] == ["bad", "bad"]
    recent.get("c")
    assert len(recent._of_process.get().cached) == 2


def together(recent, keys):
    """Request all keys at once; return the outcome of each."""
    with ThreadPoolExecutor(len(keys)) as pool:
        asked = [pool.submit(recent.get, key) for key in keys]
        return [each.exception(30) or each.result() for each in asked]


def test_concurrent_requests_share_one_outcome():
    """Concurrent requests share one outcome, also an error, so that none waits for several tries of
    a hanging store.
    """
    tries, came = [], []

    class Key(str):
        __slots__ = ()

        def __hash__(self):
            came.append(threading.get_ident())  # later requests wait from here on
            return super().__hash__()

    def hang(key):
        tries.append(key)
        wait_until(lambda: len(set(came)) == 8 or len(tries) > 1, "all have asked")
        raise StoreUnavailable("it hangs")

    found = together(TTLCache(hang, 2.0), [Key("a") for _ in range(8)])
    assert all(isinstance(each, StoreUnavailable) for each in found)
    assert tries == ["a"]


def test_one_key_does_not_wait_for_another():
    """Each of two requests is answered only while the other is running, too."""
    both = threading.Barrier(2)
    recent = TTLCache(lambda key: f"{key}{both.wait(30) >= 0}", 2.0)
    assert together(recent, ["a", "b"]) == ["aTrue", "bTrue"]
