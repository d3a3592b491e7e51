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
    """A pause is drawn as zero, not as a line across it."""
    assert drawn({60: ONE, 240: TWO}) == {60: 1, 120: 0, 180: 0, 240: 2}


def test_entries_before_the_start_are_omitted():
    """Entries before the start of the range aren't drawn."""
    assert drawn({60: ONE, 120: ONE, 180: TWO}, begin=130) == {120: 1, 180: 2}


def test_the_current_minute_is_omitted():
    """The current minute is omitted, unless it is the only one, as it would look like a drop; the
    current hour is shown.
    """
    assert drawn({60: TWO, 120: ONE}, now=150) == {60: 2}
    assert drawn({60: TWO, 120: ONE}, now=180) == {60: 2, 120: 1}
    assert drawn({120: ONE}, now=150) == {120: 1}
    assert drawn({0: TWO, 3600: ONE}, now=4000, seconds=3600) == {0: 2, 3600: 1}


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
