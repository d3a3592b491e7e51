"""Writing counters to a store: when, and without losing or doubling any."""

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
from offload.metrics.report import report
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


def test_counts_are_due_once_per_interval(recorder, counters, clock):
    """A batch is due an interval after the last one, if anything was counted since."""
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


def test_a_lost_batch_is_sent_again(recorder, counters, clock):
    """A lost batch is sent again under the same number, so that it counts once if it did arrive."""
    counters.add(values_seen=1)
    clock.now += 10
    tally = recorder.next_batch()
    recorder.requeue(tally)
    counters.add(values_seen=1)
    clock.now += 10
    assert recorder.next_batch() is tally
    clock.now += 10
    assert recorder.next_batch().number == tally.number + 1


def test_arguments_are_separate_in_the_total_and_tasks_in_the_series(recorder, counters, clock):
    """The total has counts by argument, the series by task."""
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


def test_counts_by_store_are_separate(recorder, counters, clock):
    """Counts by store are separate in both accounts and belong to no task."""
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


def test_the_exit_writes_the_rest(recorder, counters):
    """Pending counts are written once, however often `write` is called."""
    store = MemoryStore()
    recorder.attach(store)
    counters.add(values_seen=3)
    recorder.write()
    assert sums_of(store).total() == {LABEL.join(("values_seen", "", "")): 3}
    recorder.write()
    assert sums_of(store).total() == {LABEL.join(("values_seen", "", "")): 3}


class Store:
    """A store with statistics that no round trip can carry, and that can be made unavailable."""

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
    """Replaces sleeping: threads sleep until the test wakes them."""

    def __init__(self):
        self.asked = queue.Queue()
        self._wakings = queue.Queue()

    def __call__(self, seconds):
        self.asked.put(seconds)
        self._wakings.get()

    def wake(self):
        """Wake a sleeping thread once; wait for one if there is none."""
        seconds = self.asked.get(timeout=30)
        self.release()
        return seconds

    def release(self):
        self._wakings.put(None)


@pytest.fixture
def naps():
    return Naps()


@pytest.fixture
def silent(counters, naps):
    """Return a store and a recorder that writes to it from a thread."""
    store = Store()
    recorder = Recorder(counters, 10, sleep=naps)
    recorder.attach(store)
    return store, recorder


def test_a_thread_writes_if_no_round_trip_can(silent, counters, naps):
    """A thread writes an interval after the first count, and exists only while there is something
    to write.
    """
    store, _ = silent
    assert naps.asked.empty()
    for round_ in range(1, 4):
        for _ in range(5):
            counters.add(values_seen=1)
        assert naps.wake() == 10
        wait_until(lambda r=round_: len(store.added) == r, "counts are written")
        assert naps.asked.empty()
    assert [tally.total for tally in store.added] == [{LABEL.join(("values_seen", "", "")): 5}] * 3
    assert [tally.number for tally in store.added] == [1, 2, 3]


@pytest.fixture
def riding(counters, naps, clock):
    """Return a store whose round trips carry statistics, and its recorder."""
    store = MemoryStore()
    added = []
    add = sums_of(store).add
    sums_of(store).add = lambda tally: (added.append(tally), add(tally))
    recorder = Recorder(counters, 10, clock=clock, sleep=naps)
    recorder.attach(store)
    return recorder, added


def test_a_timer_writes_counts_without_a_round_trip(riding, counters, naps, clock):
    """A timer writes after the interval what no round trip carried; without counts there is no
    thread and no round trip.
    """
    _, added = riding
    assert naps.asked.empty()
    counters.failed(BlobMissing("x"))
    clock.now += 10
    assert naps.wake() == 10
    wait_until(lambda: added, "counts are written")
    assert added[0].total == {LABEL.join(("errors_missing", "", "")): 1}
    wait_until(lambda: not any_writer(), "the thread has ended")
    assert naps.asked.empty()


@pytest.fixture(autouse=True)
def others():
    """Return threads of other tests in this process, whose apps may have something to write."""
    _OTHERS.clear()
    _OTHERS.update(threading.enumerate())


def any_writer():
    mine = {*threading.enumerate()} - {*_OTHERS}
    return any(thread.name == "offload-stats" for thread in mine)


_OTHERS = weakref.WeakSet()


def test_a_timer_does_not_repeat_a_round_trip(riding, counters, naps, clock):
    """Counts after a round trip are written an interval after they were made."""
    recorder, added = riding
    counters.add(values_seen=1)
    assert naps.asked.get(timeout=30) == 10
    clock.now += 10
    assert recorder.next_batch() is not None  # a round trip
    clock.now += 3
    counters.add(values_seen=1)
    naps.release()
    assert naps.asked.get(timeout=30) == 10
    assert not added
    clock.now += 10
    naps.release()
    wait_until(lambda: len(added) == 1, "counts are written")
    assert recorder.next_batch() is None  # nothing is due at once either


def test_errors_are_written_soon_however_long_the_interval(counters, naps):
    """An idle process writes an error within ten seconds, and other counts after the interval."""
    store = MemoryStore("errors are written soon")
    recorder = Recorder(counters, 3600, sleep=naps)
    recorder.attach(store)
    counters.add(values_seen=1)
    assert naps.wake() == 10
    assert naps.asked.get(timeout=30) == 10
    assert not report(sums_of(store)).total.counts
    counters.failed(BlobMissing("x"))
    naps.release()
    wait_until(lambda: report(sums_of(store)).total["errors_missing"], "the error is written")
    assert report(sums_of(store)).total["values_seen"] == 1


def test_a_long_interval_is_waited_for_in_full(counters, naps):
    """Without errors, counts are written after the interval, not before."""
    store = Store()
    recorder = Recorder(counters, 25, sleep=naps)
    recorder.attach(store)
    counters.add(values_seen=1)
    waits = []
    for _ in range(3):
        waits.append(naps.asked.get(timeout=30))
        assert not store.added
        naps.release()
    assert waits == [10, 10, 5]
    wait_until(lambda: store.added, "counts are written")


def test_counts_before_the_store_is_known_are_written(counters, naps):
    """Counts made before a store is attached are written to it."""
    store = Store()
    recorder = Recorder(counters, 10, sleep=naps)
    counters.add(values_seen=1)
    recorder.attach(store)
    naps.wake()
    wait_until(lambda: store.added, "counts are written")


def test_the_thread_retries_until_the_store_is_back(silent, counters, naps):
    """A batch is retried under the same number, without further threads."""
    store, _ = silent
    store.away = True
    others = set(threading.enumerate())  # including those of other tests
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


def test_the_exit_of_a_process_is_recorded(silent, counters):
    """At exit, the rest is written and the account closed, once."""
    store, recorder = silent
    counters.add(values_seen=1)
    recorder.end()
    assert (len(store.added), store.ended) == (1, 1)


def test_the_exit_needs_no_new_thread(counters, monkeypatch):
    """If no thread can start (Python 3.12 at exit), the waiting one writes the rest."""
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


def test_hostile_names_are_cleaned(recorder, counters, clock):
    """Separators in task names, which come from messages, are removed, and long names are cut."""
    with counters.about(f"a{LABEL}b", "x" * 1000):
        counters.add(values_seen=1)
    clock.now += 10
    [text] = recorder.next_batch().total
    assert text == LABEL.join(("values_seen", "a b", "x" * 200))


def test_too_many_tasks_are_counted_together(counters):
    """A process's memory doesn't grow with the number of names."""
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
    """Each kind of error has a counter of its own."""
    counters.failed(error)
    assert {k: v for k, v in counters.snapshot().items() if v} == {name: 1}


def test_every_duration_has_a_bound(counters):
    """Each duration is counted under the lowest bound that includes it."""
    for seconds in (0, *BOUNDS, 1e9):
        counters.took("decode", seconds)
    taken = {what.name: amount for what, amount in counters.take().items()}
    assert [taken[f"decode_seconds_{n}"] for n in range(len(BOUNDS) + 1)] == [2] + [1] * 8
    with pytest.raises(KeyError):
        counters.took("sleep", 1)


def test_a_publisher_and_a_worker_are_added_up(redis):
    """Counts of a publisher and a worker are in one account, by task and argument; both write them
    when they exit.
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
    assert total["values_fetched", "", ""] == 1  # a direct call has no message's argument


def test_statistics_can_be_disabled(redis):
    """With an interval of 0, nothing is written."""
    url = f"{redis.url}?prefix=off-{os.getpid()}"
    app = Celery("off", broker="memory://", set_as_current=False)
    hook = Offload(app, store=url, stats_interval=0)
    hook.put("x" * 100_000)
    hook._runtime.recorder.write()
    assert sums_of(open_store(url)).total() == {}


def test_counts_of_a_worker_are_kept_over_time(counters, clock):
    """What the processes of a worker count is added up by its name, over time only."""
    store = MemoryStore("workers")
    for worker, fetched in (("a@one", 2), ("a@one", 3), ("b@two", 4), ("", 9)):
        own = Counters()
        recorder = Recorder(own, 10, clock=clock)
        recorder.worker = worker
        recorder.attach(store)
        with own.about("shop.report", "rows"):
            own.add(values_fetched=fetched, values_seen=1)
        recorder.write()
    found = report(sums_of(store), 86400, tasks=True)
    assert {name: each["values_fetched"] for name, each in found.workers.items()} == {
        "a@one": 5,
        "b@two": 4,
    }
    assert found.workers["a@one"]["values_seen"] == 0
    assert found.stores == {}
    assert found.total["values_fetched"] == 18
    assert report(sums_of(store), 3600).total["values_fetched"] == 18
    assert report(sums_of(store)).workers == {}
