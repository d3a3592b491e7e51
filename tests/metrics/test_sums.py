"""Counters of any number of processes add up exactly and take bounded space."""

from __future__ import annotations

import sys
import threading
import time
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.errors import StoreUnavailable
from offload.metrics.snapshots import is_fold
from offload.metrics.storage import sums_of, sweep_sums
from offload.stores import open_store
from offload.stores.capabilities import AddsNumbers
from offload.stores.memory import MemoryStore
from offload.stores.sums import LABEL, SPANS, CounterBatch, MemorySums
from offload.testing.store import unique
from tests.support.fake_redis import fake_redis
from tests.support.moto_s3 import moto_s3
from tests.support.processes import Process, environment
from tests.support.servers import redis_client, redis_server

DIGEST = "b3:" + "0" * 64


@pytest.fixture(
    params=[
        *("memory", "fake", "redis", "valkey", "cluster", "tiers"),
        *("file", "fsspec", "moto", "s3"),
    ]
)
def store(request, tmp_path):
    if request.param == "moto":
        with moto_s3(time.time) as store:
            yield store
    else:
        yield _store(request, tmp_path)


def _store(request, tmp_path):
    kind = request.param
    if kind == "memory":
        return MemoryStore()
    if kind == "file":
        return open_store(f"file://{tmp_path}")
    if kind == "fsspec":
        return open_store(f"fsspec+memory://{unique()}")
    if kind == "s3":
        return open_store(request.getfixturevalue("s3").url(unique()))
    if kind == "fake":
        return fake_redis()
    prefix = f"prefix={unique().replace('/', '-')}"
    if kind == "tiers":
        url = request.getfixturevalue("redis").url
        return open_store([f"{url}?{prefix}", f"file://{tmp_path}"])
    url = request.getfixturevalue(kind).url
    return open_store(f"{url}{'&' if '?' in url else '?'}{prefix}")


@pytest.fixture
def tallies(store):
    return sums_of(store)


def text(name, task="", argument=""):
    return LABEL.join((name, task, argument))


def test_every_batch_is_added(tallies):
    """The total is the sum of all batches; the series has it by minute, hour, and day."""
    for process, number in (("a", 1), ("b", 1), ("a", 2)):
        amounts = {text("seen", "t", "x"): 2, text("seen", "t", "y"): 1}
        tallies.add(CounterBatch(process, number, amounts, {text("seen", "t"): 3}))
    assert tallies.total() == {text("seen", "t", "x"): 6, text("seen", "t", "y"): 3}
    for span, seconds in SPANS.items():
        series = tallies.series(span)
        assert all(begin % seconds == 0 for begin in series)
        name = "seen" if span == "minute" else text("seen", "t")
        assert sum(counts[name] for counts in series.values()) == 9
    tallies.clear()
    assert tallies.total() == {}
    assert not any(tallies.series(span) for span in SPANS)


def test_statistics_are_no_blobs_and_a_sweep_leaves_them(store):
    """Neither statistics of a running process nor those of an exited one are blobs."""
    amounts = {text("seen"): 1}
    sums_of(store).add(CounterBatch("a", 1, amounts, amounts))
    sums_of(store).end()
    sums_of(store).add(CounterBatch("a", 2, amounts, amounts))
    for dry_run in (True, False, False):
        found = [*store.sweep(dry_run=dry_run), *sweep_sums(store, dry_run=dry_run)]
        assert found == []
        assert sums_of(store).total() == {text("seen"): 2}
    assert list(store.blobs.scan()) == list(store.blobs.find("b3:")) == []


def test_a_series_of_a_time_range(tallies):
    """Entries outside the requested range aren't even read."""
    one = {text("seen"): 1}
    tallies.add(CounterBatch("a", 1, one, one))
    for since in (1, 60, 3600.5, 10**6):
        for span, seconds in SPANS.items():
            found = tallies.series(span, since)
            assert sum(counts[name] for counts in found.values() for name in counts) == 1
            assert len(found) <= since / seconds + 2


def test_reading_a_series_costs_the_same_however_much_is_stored():
    """A series' keys are known, not found by a scan."""
    with redis_server() as server, redis_client(server) as client:
        tallies = sums_of(open_store(server.url))
        tallies.add(CounterBatch("a", 1, {text("seen"): 1}, {text("seen"): 1}))
        client.mset({f"other-{number}": 1 for number in range(20_000)})
        tallies.series("minute")
        before = client.info("stats")["total_reads_processed"]
        assert len(tallies.series("minute", 600)) == 1
        assert client.info("stats")["total_reads_processed"] - before <= 2 + 1


def test_a_repeated_batch_counts_once(tallies):
    """A writer without an answer may send its batch again."""
    tally = CounterBatch("a", 1, {text("seen"): 5}, {text("seen"): 5})
    tallies.add(tally)
    tallies.add(tally)
    assert tallies.total() == {text("seen"): 5}
    assert [counts["seen"] for counts in tallies.series("minute").values()] == [5]


def test_a_full_account_accepts_no_more_names(tallies, monkeypatch):
    """Beyond the limit, names are counted together, and nothing is lost."""
    monkeypatch.setattr("offload.stores.sums.FIELDS", 10)
    monkeypatch.setattr("offload.stores.redis.store.FIELDS", 10)
    for number in range(30):
        one = {text("seen", f"task {number}"): 1}
        tallies.add(CounterBatch("a", number, one, one))
    tallies.add(CounterBatch("a", 30, {text("seen", "task 0"): 1}, {}))
    total = tallies.total()
    assert len(total) == 11
    assert total[text("seen", "task 0")] == 2
    assert total[text("seen", "(other)")] == 20
    assert len(next(iter(tallies.series("hour").values()))) == 11


@given(
    given_=st.lists(
        st.dictionaries(st.text(max_size=20), st.integers(1, 1 << 40), max_size=5), max_size=6
    )
)
def test_any_names_are_added_up(given_):
    """Names may contain any characters; each is counted separately."""
    stores = [MemorySums(), sums_of(fake_redis())]
    expected = {}
    for number, names in enumerate(given_):
        amounts = {}
        for name, amount in names.items():
            clean = name.replace(LABEL, " ").encode("utf-8", "replace").decode()
            amounts[text("seen", clean)] = amounts.get(text("seen", clean), 0) + amount
        for name, amount in amounts.items():
            expected[name] = expected.get(name, 0) + amount
        for tallies in stores:
            tallies.add(CounterBatch("a", number, amounts, {}))
    for tallies in stores:
        assert tallies.total() == expected


class Once:
    """Returns one batch; remembers lost ones."""

    def __init__(self):
        self.tally = CounterBatch("rider", 1, {text("seen"): 1}, {text("seen"): 1})
        self.given = []
        self.back = []

    def next_batch(self):
        given, self.tally = self.tally, None
        if given is not None:
            self.given.append(given)
        return given

    def requeue(self, tally):
        self.back.append(tally)
        self.tally = tally


def test_a_piggybacked_batch_costs_no_round_trip():
    """A piggybacked batch is sent and answered with the store's next round trip."""
    with redis_server() as server, redis_client(server) as client:
        store = open_store(server.url)
        assert isinstance(store, AddsNumbers)
        store.pointers.swap("p", None, b"1")
        sums_of(store).piggyback(rider := Once())
        before = client.info("stats")["total_reads_processed"]
        idle = client.info("stats")["total_reads_processed"] - before
        assert store.pointers.read("p") == b"1"
        assert client.info("stats")["total_reads_processed"] - before - idle == idle + 1
        assert rider.given
        assert sums_of(store).total() == {text("seen"): 1}


@pytest.mark.parametrize("ask", ("read", "claim"))
def test_a_lost_batch_is_requeued(valkey, ask):
    """While the server is unavailable, a batch is requeued; later it counts once."""
    with redis_server() as server:
        store = open_store(f"{server.url}?socket_timeout=1")
        asked = {
            "read": lambda: store.pointers.read("p"),
            "claim": lambda: store.leases.claim("p", "owner", 60)().value,
        }[ask]
        asked()
        sums_of(store).piggyback(rider := Once())
        server.stop()
        with pytest.raises(StoreUnavailable):
            asked()
        assert rider.back
        server.start()
        assert asked() is None
        assert sums_of(store).total() == {text("seen"): 1}


def test_a_server_that_refuses_scripts(redis):
    """Statistics that can't be written don't affect the store's calls."""
    with redis_client(redis) as client:
        user = unique().replace("/", "")
        client.acl_setuser(
            user, enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-eval"]
        )
        port = client.connection_pool.connection_kwargs["port"]
        store = open_store(f"redis://{user}:x@127.0.0.1:{port}")
        sums_of(store).piggyback(rider := Once())
        assert store.pointers.read("nothing") is None
        assert rider.given
        client.acl_deluser(user)


def test_threads_that_add_at_once_lose_nothing(tallies):
    """No count is lost when threads add at once."""
    numbers = count()

    def add():
        for _ in range(20):
            name = f"p{next(numbers)}"
            tallies.add(CounterBatch(name, 1, {text("seen"): 1}, {text("seen"): 1}))

    threads = [threading.Thread(target=add) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tallies.total() == {text("seen"): 100}


COUNTING = """
import sys
from offload.stores import open_store
from offload.metrics import storage
from offload.metrics.storage import sums_of, sweep_sums
from offload.stores.sums import CounterBatch
storage.SELDOM, storage.MANY = 1, 2
store = open_store(sys.argv[1])
for number in range(10):
    sums_of(store).add(CounterBatch(sys.argv[2], number, {"seen": 1}, {"seen": 1}))
    sums_of(store).end()
    if number % 3 == 0:
        list(sweep_sums(store, dry_run=False))
        list(store.sweep())
"""


@pytest.mark.server
@pytest.mark.parametrize("kind", ("file", "s3"))
def test_processes_that_fold_at_once_lose_nothing(request, kind, tmp_path):
    """No count is lost while processes write and fold the same files."""
    s3 = request.getfixturevalue("s3") if kind == "s3" else None
    url = s3.url(unique()) if s3 is not None else f"file://{tmp_path}/store"
    script = tmp_path / "counting.py"
    script.write_text(COUNTING)
    processes = [
        Process(
            [sys.executable, str(script), url, f"p{number}"],
            tmp_path / f"{number}.log",
            environment(),
            fork=True,
        )
        for number in range(4)
    ]
    for process in processes:
        process.finish(120)
    store = open_store(url)
    assert sums_of(store).total() == {"seen": 40}
    assert any(is_fold(entry.name) for entry in sums_of(store)._files.entries())
