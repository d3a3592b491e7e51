"""Single flight in stores that take one request for each step."""

from __future__ import annotations

import pytest

from offload.memo.flight import Busy, Computation, Flights
from offload.stores.file.store import FileStore
from offload.stores.memory import MemoryStore
from offload.stores.sqlite import SQLiteStore

NAME = "memo/task/app/key"
LEASE = 30.0


@pytest.fixture(params=("memory", "file", "sqlite"))
def store(request, tmp_path):
    made = {
        "memory": lambda: MemoryStore("flight"),
        "file": lambda: FileStore(tmp_path / "files"),
        "sqlite": lambda: SQLiteStore(tmp_path / "store.db"),
    }
    return made[request.param]()


@pytest.fixture
def flights(store):
    """Return two processes' flights."""
    return [Flights(store, lambda _name, value: value != b"invalid") for _ in range(2)]


def test_one_computes_and_the_others_find_its_result(flights):
    """The first to claim computes, the next is told to wait, and then finds the record."""
    one, two = flights
    mine = one.claim(NAME, LEASE)
    busy = two.claim(NAME, LEASE)
    assert isinstance(mine, Computation)
    assert isinstance(busy, Busy)
    assert 0 < busy.left <= LEASE + 2  # files go by a clock of whole seconds
    assert one.settle(mine, b"record", 60)() is True
    assert two.claim(NAME, LEASE) == b"record"


@pytest.mark.parametrize("finished", (True, False))
def test_a_stale_result_changes_nothing(store, flights, finished):
    """A computation that lost its lease neither replaces nor deletes what a later one wrote, nor
    takes its lease.
    """
    one, two = flights
    stale = one.claim(NAME, LEASE)
    store.leases.release(NAME, stale.owner)
    later = two.claim(NAME, LEASE)
    assert later.fence > stale.fence
    if finished:
        assert two.settle(later, b"record", 60)() is True
    assert one.settle(stale, b"late", 60)() is False
    assert store.pointers.read(NAME) == (b"record" if finished else None)
    if not finished:
        assert two.settle(later, b"record", 60)() is True
    assert two.claim(NAME, LEASE) == b"record"


def test_a_result_that_was_just_written_is_found(store, flights, monkeypatch):
    """A record that is written between the look for it and the lease is a hit, not computed."""
    one, two = flights
    mine = one.claim(NAME, LEASE)
    acquire = store.leases.acquire

    def late(*given):
        one.settle(mine, b"record", 60)()
        return acquire(*given)

    with monkeypatch.context() as patch:
        patch.setattr(store.leases, "acquire", late)
        assert two.claim(NAME, LEASE) == b"record"
    assert store.leases.read(NAME) is None


def test_a_forgotten_result_is_not_written_at_the_last_moment(store, flights, monkeypatch):
    """A result that is forgotten between the check of its lease and its record is removed."""
    one, _ = flights
    mine = one.claim(NAME, LEASE)
    swap = store.pointers.swap

    def forgotten(*given):
        store.leases.release(NAME, mine.owner)
        return swap(*given)

    with monkeypatch.context() as patch:
        patch.setattr(store.pointers, "swap", forgotten)
        assert one.settle(mine, b"record", 60)() is False
    assert store.pointers.read(NAME) is None


def test_a_record_that_is_not_valid_is_replaced(store, flights):
    """A record that doesn't count is computed anew and replaced, also if it is swept meanwhile."""
    one, two = flights
    store.pointers.swap(NAME, None, b"invalid")
    mine = one.claim(NAME, LEASE)
    assert isinstance(mine, Computation)
    assert isinstance(two.claim(NAME, LEASE), Busy)
    store.pointers.swap(NAME, b"invalid", None)
    assert one.settle(mine, b"record", 60)() is True
    assert isinstance(two.claim(NAME, LEASE, b"record"), Computation)
