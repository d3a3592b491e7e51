"""Snapshots of a store's content."""

from __future__ import annotations

import gc
import math
import threading
import tracemalloc
from itertools import pairwise

import pytest

from offload.dashboard.caching import BackgroundRefresh
from offload.errors import ConfigurationError
from offload.inspect.blobs import Row, ordered, rows
from offload.inspect.snapshot import Query, held_by, take_snapshot
from offload.metrics import recorder
from offload.stores import open_store
from offload.stores.memory import MemoryStore
from tests.support.processes import wait_until

HOUR = 3600.0
MANY = 20_000


@pytest.fixture(autouse=True)
def quiet():
    """Stop the statistics writers of other tests' apps, which allocate memory."""
    recorder._write_all()


def digest(at):
    return f"b3:{at:064x}"


def full(*sizes, ttl=HOUR):
    """Return a store with a blob of each size, under the digests 0, 1, and so on."""
    store = MemoryStore()
    for at, size in enumerate(sizes):
        store.blobs.put({digest(at): [bytes(size)]}, ttl)
    return store


def shown(snapshot, **query):
    return [int(row.digest[3:], 16) for row in snapshot.select(Query(**query)).rows]


# -- content


@pytest.mark.server
def test_it_matches_the_list(many):
    """Sizes, holders, and order are those of `offload ls`, for each of its orders."""
    store, _ = many(3000)
    snapshot = take_snapshot(store)
    for sort in ("size", "holders"):
        expected = [(r.digest, r.size, r.holders) for r in ordered(rows(store), sort, 700)]
        found = snapshot.select(Query(sort=sort), 0, 700).rows
        assert [(r.digest, r.size, r.holders) for r in found] == expected
    by_expiry = snapshot.select(Query(sort="expiry"), 0, 3000).rows
    assert all(one.ttl <= other.ttl for one, other in pairwise(by_expiry))
    assert {row.digest for row in by_expiry} == {row.digest for row in rows(store)}
    totals = snapshot.totals
    assert (totals.count, totals.held) == (3000, 1500)
    assert totals.size == sum(row.size for row in rows(store))


def test_pages_follow_each_other():
    """Each blob is on one page, and each page has the total number."""
    snapshot = take_snapshot(full(*[at % 7 for at in range(100)]))
    found = [snapshot.select(Query(), offset, 30) for offset in range(0, 120, 30)]
    assert [len(page.rows) for page in found] == [30, 30, 30, 10]
    assert len({row.digest for page in found for row in page.rows}) == 100
    assert {(page.count, page.size) for page in found} == {(100, sum(a % 7 for a in range(100)))}
    assert snapshot.select(Query(), 500, 30).rows == []


def test_it_is_sorted_in_both_directions():
    """Both directions sort equal values by digest."""
    snapshot = take_snapshot(full(5, 9, 5, 1))
    assert shown(snapshot) == [1, 0, 2, 3]
    assert shown(snapshot, descending=False) == [3, 0, 2, 1]
    assert shown(snapshot, sort="digest") == [0, 1, 2, 3]
    assert shown(snapshot, sort="digest", descending=True) == [3, 2, 1, 0]


def test_it_is_filtered():
    """The filters are a digest prefix, with or without b3:, a size, and whether a blob is held."""
    store = full(*range(40))
    store.blobs.hold([digest(7), digest(16)], HOUR, "task:1")
    snapshot = take_snapshot(store)
    prefix = digest(16)[:-1]
    for each in (prefix, prefix[3:]):
        assert shown(snapshot, prefix=each, sort="digest") == list(range(16, 32))
    assert shown(snapshot, prefix=digest(33)) == [33]
    assert shown(snapshot, prefix="b3:f") == []
    assert shown(snapshot, larger_than=37) == [39, 38]
    assert shown(snapshot, held=True) == [16, 7]
    assert len(shown(snapshot, held=False)) == 38
    assert shown(snapshot, held=True, prefix=prefix, larger_than=15) == [16]


def test_a_repeated_page_is_cached(monkeypatch):
    """A page that is requested again, as by each open browser, isn't selected again."""
    snapshot = take_snapshot(full(*range(40)))
    query = Query(sort="expiry", larger_than=10)
    first = snapshot.select(query, 0, 5)
    monkeypatch.setattr(snapshot, "_indexes", None)
    assert snapshot.select(query, 0, 5) == first
    assert len(snapshot.select(query, 5, 5).rows) == 5


@pytest.mark.server
def test_blobs_of_a_task_are_found(many):
    """Blobs are found by the id of the task that holds them, and no others."""
    store, digests = many(60, held=3)
    snapshot = take_snapshot(store)
    places = held_by(store, snapshot, "id-33")
    assert [row.digest for row in snapshot.select(Query(among=places)).rows] == [digests[33]]
    assert snapshot.select(Query(among=places, larger_than=1000)).rows == []
    assert held_by(store, snapshot, "id-3")[0] != places[0]
    assert held_by(store, snapshot, "id") == held_by(store, snapshot, "") == []


def test_without_hold_tracking_holders_are_unknown(tmp_path):
    """Without hold tracking, no blob is shown as unreferenced."""
    store = open_store(f"file://{tmp_path}/store")
    store.blobs.put({digest(1): [b"x"]}, HOUR)
    snapshot = take_snapshot(store)
    assert not snapshot.knows_holders
    assert snapshot[0].holders is None
    assert (snapshot.totals.held, snapshot.totals.held_size) == (None, None)
    with pytest.raises(ConfigurationError, match="doesn't track holds"):
        held_by(store, snapshot, "1")


def test_an_empty_store():
    """An empty store has empty totals and charts, and no page."""
    snapshot = take_snapshot(MemoryStore())
    assert (snapshot.totals.count, snapshot.totals.size, snapshot.totals.largest) == (0, 0, 0)
    assert sum(bucket.count for bucket in snapshot.by_size + snapshot.by_expiry) == 0
    assert snapshot.select(Query(prefix="b3:0")).rows == []


def test_blobs_are_divided_by_size_and_by_expiry():
    """Each blob is in one bar with its bytes; permanent ones are in the last."""
    store = full(0, 999, 1000, 150_000)
    store.state.blobs[digest(3)].until = math.inf
    snapshot = take_snapshot(store)
    counts = {bucket.below: (bucket.count, bucket.size) for bucket in snapshot.by_size}
    assert counts[1e3] == (2, 999)
    assert counts[10e3] == (1, 1000)
    assert counts[1e6] == (1, 150_000)
    assert sum(count for count, _ in counts.values()) == 4
    ends = {bucket.below: bucket.count for bucket in snapshot.by_expiry}
    assert (ends[3600.0] + ends[6 * 3600.0], ends[math.inf]) == (3, 1)


# -- limits


def test_the_number_of_blobs_is_limited():
    """A snapshot has a limit and says if there are more blobs."""
    store = full(*range(50))
    some = take_snapshot(store, limit=30)
    assert (len(some), some.more) == (30, True)
    assert take_snapshot(store, limit=50).more is False


@pytest.mark.server
def test_many_blobs_take_little_memory(many):
    """One snapshot serves many pages and takes 120 bytes a blob, and 600 while it is taken, in a
    number of objects that doesn't grow with the blobs.
    """
    store, _ = many(MANY)
    taken = []

    def scan():
        taken.append(1)
        return take_snapshot(store)

    refreshed = BackgroundRefresh(scan, every=1e6)
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        wait_until(lambda: refreshed.get().value, "a snapshot is taken", 120)
        snapshot = refreshed.get().value
        for sort in ("size", "expiry", "holders", "digest"):
            for descending in (False, True):
                snapshot.select(Query(sort=sort, descending=descending), MANY // 2)
        for number in range(20):
            snapshot.select(Query(larger_than=number, held=bool(number % 2)))
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 120 * MANY
    assert peak - before < 600 * MANY
    gc.collect()
    assert len(gc.get_objects()) - objects < 1000
    for offset in range(0, MANY, 1000):
        assert len(refreshed.get().value.select(Query(), offset).rows) == 50
    assert taken == [1]


@pytest.mark.server
def test_memory_stays_flat_over_a_day_of_refreshes(many):
    """200 refreshes take as much memory as 20, and leave no thread. (One of three rounds is enough:
    other tests' threads may allocate memory, and a leak grows in each round.)
    """
    store, _ = many(200)
    refreshed = BackgroundRefresh(lambda: take_snapshot(store), every=0, share=0)
    threads = threading.active_count()

    def refresh(times):
        for _ in range(times):
            before = refreshed.get().value
            wait_until(
                lambda old=before: refreshed.get().value is not old, "the snapshot is refreshed"
            )
            refreshed.get().value.select(Query())

    refresh(20)
    tracemalloc.start()
    try:
        refresh(20)
        grown = []
        while not grown or (grown[-1] >= 200_000 and len(grown) < 3):
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            refresh(180)
            gc.collect()
            grown.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    assert min(grown) < 200_000, grown
    wait_until(lambda: threading.active_count() <= threads + 1, "no thread is left")


def test_a_row_has_named_fields():
    """A row has the fields of a list's row."""
    assert take_snapshot(full(3))[0] == Row(digest(0), 3, pytest.approx(HOUR, abs=5), 0)
