"""Figures along the time, as they are drawn."""

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


def test_what_was_not_counted_is_zero():
    """A pause is drawn as one, not as a line from before it to after it."""
    assert drawn({60: ONE, 240: TWO}) == {60: 1, 120: 0, 180: 0, 240: 2}


def test_what_is_over_before_the_beginning_is_left_out():
    assert drawn({60: ONE, 120: ONE, 180: TWO}, begin=130) == {120: 1, 180: 2}


def test_the_running_minute_would_look_like_a_fall():
    """It is left out, unless there is no other; an hour is shown as it grows."""
    assert drawn({60: TWO, 120: ONE}, now=150) == {60: 2}
    assert drawn({60: TWO, 120: ONE}, now=180) == {60: 2, 120: 1}
    assert drawn({120: ONE}, now=150) == {120: 1}
    assert drawn({0: TWO, 3600: ONE}, now=4000, seconds=3600) == {0: 2, 3600: 1}


def test_nothing_is_nothing():
    assert drawn({}) == {}


def test_an_answer_is_given_again_for_a_while():
    """Each key is read once in that time, few keys are kept, and errors are not."""
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
    """Ask for all keys at once; return what each got."""
    with ThreadPoolExecutor(len(keys)) as pool:
        asked = [pool.submit(recent.get, key) for key in keys]
        return [each.exception(30) or each.result() for each in asked]


def test_who_waits_for_a_try_shares_what_comes_of_it():
    """Also an error: while a store hangs nobody waits for one try after another."""
    tries, came = [], []

    class Key(str):
        __slots__ = ()

        def __hash__(self):
            came.append(threading.get_ident())  # who looks for it waits from then on
            return super().__hash__()

    def hang(key):
        tries.append(key)
        wait_until(lambda: len(set(came)) == 8 or len(tries) > 1, "all have asked")
        raise StoreUnavailable("it hangs")

    found = together(TTLCache(hang, 2.0), [Key("a") for _ in range(8)])
    assert all(isinstance(each, StoreUnavailable) for each in found)
    assert tries == ["a"]


def test_one_key_does_not_wait_for_another():
    """Each of two is answered only once the other is asked for, too."""
    both = threading.Barrier(2)
    recent = TTLCache(lambda key: f"{key}{both.wait(30) >= 0}", 2.0)
    assert together(recent, ["a", "b"]) == ["aTrue", "bTrue"]
