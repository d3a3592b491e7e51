"""From counters to a store's tallies: when, and that nothing is counted twice or lost."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
from celery import Celery

from offload import Counters, Offload
from offload.errors import BlobMissing, OffloadError, StoreUnavailable, ValueTooLarge
from offload.metrics.counters import BOUNDS, OTHER, Counted
from offload.metrics.recorder import Recorder
from offload.metrics.storage import sums_of
from offload.stores import open_store
from offload.stores.memory import MemoryStore
from offload.stores.sums import LABEL
from offload.testing.store import FakeClock
from tests.support.processes import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clock():
    return FakeClock(100.0)


@pytest.fixture
def counters():
    return Counters()


@pytest.fixture
def recorder(counters, clock):
    return Recorder(counters, 10, clock=clock)


def test_what_was_counted_is_due_once_in_an_interval(recorder, counters, clock):
    counters.add(values_seen=1)
    assert recorder.next_batch() is None
    clock.now += 10
    tally = recorder.next_batch()
    assert tally is not None
    assert tally.total == {LABEL.join(("values_seen", "", "")): 1}
    counters.add(values_seen=1)
    assert recorder.next_batch() is None
    clock.now += 10
    assert recorder.next_batch().number == tally.number + 1
    clock.now += 10
    assert recorder.next_batch() is None  # nothing was counted since


def test_what_was_lost_is_due_again_as_it_was(recorder, counters, clock):
    """Under the same number, so that it counts once if it did arrive."""
    counters.add(values_seen=1)
    clock.now += 10
    tally = recorder.next_batch()
    recorder.requeue(tally)
    counters.add(values_seen=1)
    clock.now += 10
    assert recorder.next_batch() is tally
    clock.now += 10
    assert recorder.next_batch().number == tally.number + 1


def test_arguments_are_told_apart_in_the_total_and_tasks_in_the_series(recorder, counters, clock):
    for argument in ("a", "b"):
        with counters.about("shop.total", argument):
            counters.add(values_seen=1)
            counters.took("fetch", 0.002)
    clock.now += 10
    tally = recorder.next_batch()
    names = {tuple(text.split(LABEL)): amount for text, amount in tally.total.items()}
    assert names["values_seen", "shop.total", "a"] == 1
    assert names["fetch_seconds_1", "shop.total", ""] == 2
    assert names["fetch_microseconds", "shop.total", ""] == 4000
    series = {tuple(text.split(LABEL)): amount for text, amount in tally.series.items()}
    assert series["values_seen", "shop.total", ""] == 2


def test_stores_are_told_apart_in_both_accounts(recorder, counters, clock):
    """And they are part of no task."""
    with counters.about("shop.total", "a"):
        counters.of_store("s3://b", bytes_stored=7)
        counters.took("upload", 0.002, store="s3://b")
    clock.now += 10
    tally = recorder.next_batch()
    expected = {
        ("of_store_bytes_stored", "", "", "s3://b"): 7,
        ("of_store_upload_seconds_1", "", "", "s3://b"): 1,
        ("of_store_upload_microseconds", "", "", "s3://b"): 2000,
    }
    for amounts in (tally.total, tally.series):
        assert {tuple(text.split(LABEL)): n for text, n in amounts.items()} == expected


def test_the_end_of_a_process_writes_what_is_left(recorder, counters):
    store = MemoryStore()
    recorder.attach(store)
    counters.add(values_seen=3)
    recorder.write()
    assert sums_of(store).total() == {LABEL.join(("values_seen", "", "")): 3}
    recorder.write()
    assert sums_of(store).total() == {LABEL.join(("values_seen", "", "")): 3}


class Store:
    """Keeps statistics that nothing can carry; away when told."""

    url = "store://"

    def __init__(self):
        self.sums = self
        self.added = []
        self.ended = 0
        self.away = False

    piggybacks = False

    def add(self, tally):
        if self.away:
            raise StoreUnavailable("away")
        self.added.append(tally)

    def end(self):
        self.ended += 1


class Naps:
    """In place of sleeping: what sleeps goes on when it is woken."""

    def __init__(self):
        self.asked = queue.Queue()
        self._wakings = queue.Queue()

    def __call__(self, seconds):
        self.asked.put(seconds)
        self._wakings.get()

    def wake(self):
        """Wake who sleeps, once; wait for one if there is none."""
        seconds = self.asked.get(timeout=30)
        self.let_go()
        return seconds

    def let_go(self):
        self._wakings.put(None)


@pytest.fixture
def naps():
    return Naps()


@pytest.fixture
def silent(counters, naps):
    """A store and a recorder that writes to it by a thread."""
    store = Store()
    recorder = Recorder(counters, 10, sleep=naps)
    recorder.attach(store)
    return store, recorder


def test_a_thread_writes_where_nothing_can_carry_it(silent, counters, naps):
    """One, an interval after the first was counted; and there is none while nothing is."""
    store, _ = silent
    assert naps.asked.empty()
    for round_ in range(1, 4):
        for _ in range(5):
            counters.add(values_seen=1)
        assert naps.wake() == 10
        wait_until(lambda r=round_: len(store.added) == r, "it is written")
        assert naps.asked.empty()
    assert [tally.total for tally in store.added] == [{LABEL.join(("values_seen", "", "")): 5}] * 3
    assert [tally.number for tally in store.added] == [1, 2, 3]


@pytest.fixture
def riding(counters, naps, clock):
    """A store whose round trips carry statistics, and its recorder."""
    store = MemoryStore()
    added = []
    add = sums_of(store).add
    sums_of(store).add = lambda tally: (added.append(tally), add(tally))
    recorder = Recorder(counters, 10, clock=clock, sleep=naps)
    recorder.attach(store)
    return recorder, added


def test_a_timer_writes_what_no_round_trip_carried(riding, counters, naps, clock):
    """After the interval; with nothing counted there is no thread and no round trip."""
    _, added = riding
    assert naps.asked.empty()
    counters.failed(BlobMissing("x"))
    clock.now += 10
    assert naps.wake() == 10
    wait_until(lambda: added, "it is written")
    assert added[0].total == {LABEL.join(("errors_missing", "", "")): 1}
    wait_until(lambda: not any_writer(), "the thread has ended")
    assert naps.asked.empty()


@pytest.fixture(autouse=True)
def others():
    """Threads that other tests of this process left: their apps may have something to write."""
    _OTHERS.clear()
    _OTHERS.update(threading.enumerate())


def any_writer():
    mine = {*threading.enumerate()} - {*_OTHERS}
    return any(thread.name == "offload-stats" for thread in mine)


_OTHERS = weakref.WeakSet()


def test_a_timer_leaves_alone_what_a_round_trip_carried(riding, counters, naps, clock):
    """What was counted since then is written an interval after it was."""
    recorder, added = riding
    counters.add(values_seen=1)
    assert naps.asked.get(timeout=30) == 10
    clock.now += 10
    assert recorder.next_batch() is not None  # a round trip
    clock.now += 3
    counters.add(values_seen=1)
    naps.let_go()
    assert naps.asked.get(timeout=30) == 10
    assert not added
    clock.now += 10
    naps.let_go()
    wait_until(lambda: len(added) == 1, "it is written")
    assert recorder.next_batch() is None  # nor is anything due at once


def test_what_was_counted_before_the_store_was_known_is_written_as_well(counters, naps):
    store = Store()
    recorder = Recorder(counters, 10, sleep=naps)
    counters.add(values_seen=1)
    recorder.attach(store)
    naps.wake()
    wait_until(lambda: store.added, "it is written")


def test_the_thread_tries_again_until_the_store_is_back(silent, counters, naps):
    """Under the same number; and threads do not become more meanwhile."""
    store, _ = silent
    store.away = True
    others = set(threading.enumerate())  # those of other tests as well
    for _ in range(5):
        counters.add(values_seen=1)
        naps.wake()
    threads = [one for one in threading.enumerate() if one.name == "offload-stats"]
    assert len(set(threads) - others) <= 2
    store.away = False

    def is_written():
        while not naps.asked.empty():
            naps.wake()
        return sum(sum(tally.total.values()) for tally in store.added) == 5

    wait_until(is_written, "all is written")
    assert [tally.number for tally in store.added] == list(range(1, len(store.added) + 1))


def test_the_end_of_a_process_is_said(silent, counters):
    store, recorder = silent
    counters.add(values_seen=1)
    recorder.end()
    assert (len(store.added), store.ended) == (1, 1)


def test_the_end_needs_no_new_thread(counters, monkeypatch):
    """Where none can start (Python 3.12 when it ends), the one that waits writes what is left."""
    store = Store()
    recorder = Recorder(counters, 3600)
    recorder.attach(store)
    counters.add(values_seen=1)

    def refuse(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    recorder.end()
    assert (len(store.added), store.ended) == (1, 1)
    recorder.end()  # nothing waits, so a store that might hang isn't asked
    assert (len(store.added), store.ended) == (1, 1)


def test_names_cannot_break_the_account(recorder, counters, clock):
    """Task names come from messages: separators in them are taken out, long ones are cut."""
    with counters.about(f"a{LABEL}b", "x" * 1000):
        counters.add(values_seen=1)
    clock.now += 10
    [text] = recorder.next_batch().total
    assert text == LABEL.join(("values_seen", "a b", "x" * 200))


def test_too_many_tasks_are_counted_together(counters):
    """A process's memory does not grow with the names that it meets."""
    for number in range(3000):
        with counters.about(f"task {number}"):
            counters.add(values_seen=1)
    taken = counters.take()
    assert len(taken) <= 2001
    assert sum(taken.values()) == 3000
    assert taken[Counted("values_seen", OTHER)] == 1000
    assert counters.take() == {}


@pytest.mark.parametrize(
    ("error", "name"),
    (
        (StoreUnavailable("x"), "errors_unavailable"),
        (BlobMissing("x"), "errors_missing"),
        (ValueTooLarge("x"), "errors_serialising"),
        (OffloadError("x"), "errors_other"),
    ),
)
def test_errors_are_counted_by_kind(counters, error, name):
    counters.failed(error)
    assert {k: v for k, v in counters.snapshot().items() if v} == {name: 1}


def test_every_time_has_its_bound(counters):
    for seconds in (0, *BOUNDS, 1e9):
        counters.took("decode", seconds)
    taken = {what.name: amount for what, amount in counters.take().items()}
    assert [taken[f"decode_seconds_{n}"] for n in range(len(BOUNDS) + 1)] == [2] + [1] * 8
    with pytest.raises(KeyError):
        counters.took("sleep", 1)


def test_a_publisher_and_a_worker_are_added_up(redis):
    """What is published in one process and executed in another stands in one account, by task
    and argument; both write it when they end.
    """
    url = f"{redis.url}?prefix=recorder-{os.getpid()}"
    script = f"""
import sys
from celery import Celery
from offload import Offload
app = Celery("counted", broker="memory://", backend="cache+memory://")
offload = Offload(app, store={url!r}, cache="off")
@app.task(name="take")
def take(one, two=None):
    return one
if sys.argv[1] == "publish":
    for _ in range(3):
        take.delay("x" * 100_000, two=["y"] * 100_000)
else:
    take.apply(args=(offload.put("x" * 100_000),))
"""
    for side in ("publish", "run"):
        done = subprocess.run(
            [sys.executable, "-c", script, side],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    total = {tuple(k.split(LABEL)): v for k, v in sums_of(open_store(url)).total().items()}
    assert total["values_offloaded", "take", "one"] == 3
    assert total["values_deduplicated", "take", "one"] == 2
    assert total["bytes_offloaded", "take", "two"] > 3 * 100_000
    assert total["values_fetched", "", ""] == 1  # a direct call is about no message's argument


def test_statistics_can_be_switched_off(redis):
    """With an interval of 0 nothing is written."""
    url = f"{redis.url}?prefix=off-{os.getpid()}"
    app = Celery("off", broker="memory://", set_as_current=False)
    hook = Offload(app, store=url, stats_interval=0)
    hook.put("x" * 100_000)
    hook.recorder.write()
    assert sums_of(open_store(url)).total() == {}
