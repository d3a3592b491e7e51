"""What a catalog names lives, through any sweep and any time; what it doesn't name goes away."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest

from offload import Catalog
from offload.catalog.lifetime import named_blobs, sweep_holds
from offload.catalog.names import record_pointer
from offload.catalog.records import seal
from offload.errors import BlobMissing, StoreUnavailable, UnsupportedVersion
from offload.gc import sweep
from offload.stores.file import FileStore
from offload.stores.memory import MemoryStore
from offload.stores.sqlite import SQLiteStore
from offload.stores.tiered import TieredStore
from offload.testing.store import FakeClock
from tests.catalog.mortal import Mortal, kill_each_call, lives
from tests.support.moto_s3 import moto_s3

DAY = 86400.0
CHUNKED = 5 << 20  # bytes of a value of several blobs


@contextmanager
def s3(clock, _path):
    with moto_s3(clock, skew=1) as store:
        yield store


@contextmanager
def tiers(clock, _path):
    with moto_s3(clock, skew=1) as lower:
        yield TieredStore(MemoryStore(clock=clock), [lower], (1000,), small=0, clock=clock)


@contextmanager
def file(clock, path):
    yield FileStore(path / "files", clock=clock, skew=1, fsync=False)


@contextmanager
def sqlite(clock, path):
    store = SQLiteStore(path / "store.db", clock=clock, fsync=False)
    yield store
    store.close()


@contextmanager
def memory(clock, _path):
    yield MemoryStore(clock=clock)


WITH_HOLDS, WITHOUT = (memory, sqlite, tiers), (file, s3)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=[*WITH_HOLDS, *WITHOUT])
def store(request, clock, tmp_path):
    with request.param(clock, tmp_path) as store:
        yield store


def live(store):
    return {info.digest for info in store.blobs.scan()}


def named(store):
    """Return the blobs that records name, of those that there are."""
    return set(named_blobs(store, live(store)))


def settle(store, clock):
    """Sweep until nothing unneeded is left, as a sweeper does that runs each day."""
    for _ in range(2):
        clock.advance(DAY * 1.5)
        sweep(store)


def test_what_is_named_outlives_everything(store, clock):
    """A saved version loads after years of sweeps, and after its content was used and released
    by others.
    """
    catalog = Catalog(store)
    large, small = os.urandom(CHUNKED), os.urandom(5000)
    catalog.save("large", large)
    catalog.save("small", small)
    catalog.save("small", small)  # the same content under another version
    catalog.remove("small", "1")
    store.blobs.hold(sorted(live(store)), 5, "task:1")
    store.blobs.release(sorted(live(store)), "task:1", 1)
    for _ in range(3):
        clock.advance(300 * DAY)
        for dry_run in (True, False):
            assert not {"blob", "hold"} & sweep(store, dry_run=dry_run).kinds.keys()
        fresh = Catalog(store)
        assert fresh["large"] == large
        assert fresh["small"] == small


def test_what_was_removed_goes_away(store, clock):
    """Removing and overwriting a version release its content, except what other versions name."""
    catalog = Catalog(store, mutable=True)
    shared, rest = os.urandom(CHUNKED), os.urandom(3000)
    catalog.save(["a", "b", "c"], [shared, shared, rest], "1")
    catalog.save("c", b"new" * 1000, "1", on_conflict="overwrite")
    catalog.remove("a")
    settle(store, clock)
    assert catalog["b"] == shared
    assert live(store) == named(store)
    catalog.remove("b")
    catalog.remove("c")
    settle(store, clock)
    assert live(store) == set()


def test_a_task_keeps_what_it_was_given(store, clock):
    """Content that is held for a while, as for a task, outlives the removal of its version."""
    catalog = Catalog(store)
    catalog.save("a", b"x" * 5000)
    (digest,) = live(store)
    assert store.blobs.hold([digest], 20 * DAY, "task:1") == set()
    catalog.remove("a")
    for _ in range(5):
        clock.advance(3 * DAY)
        sweep(store)
    assert live(store) == {digest}
    for _ in range(4):
        clock.advance(3 * DAY)
        sweep(store)
    assert live(store) == set()


def test_a_saver_killed_anywhere(store, clock):
    """Whatever call to the store a saver is killed at, the version is complete or absent, later
    savers are not disturbed, and nothing stays of what isn't named.
    """
    values = {}

    def save(mortal, number):
        values[number] = os.urandom(CHUNKED)
        Catalog(mortal).save("a", values[number], str(number))

    survivors = Catalog(store)
    kills = sum(1 for _ in kill_each_call(store, save))
    assert kills >= 8
    saved = survivors.list_versions("a")
    assert 1 <= len(saved) < len(values)
    for version in saved:
        assert survivors.load("a", version) == values[int(version)]
    settle(store, clock)
    for version in saved:
        assert Catalog(store).load("a", version) == values[int(version)]
    assert live(store) == named(store)
    survivors.remove("a")
    settle(store, clock)
    assert live(store) == set()


@pytest.mark.parametrize("store", (memory, file), indirect=True)
def test_a_store_lost_anywhere(store, clock):
    """Whatever call to the store is the last that it answers, as between the blobs and the record,
    the version is complete or absent, and `save` says that it doesn't know.
    """
    values = {}
    for number, life in enumerate(lives(StoreUnavailable("gone"))):
        values[str(number)] = os.urandom(CHUNKED)
        catalog = Catalog(Mortal(store, life), retry={"max_retries": 0})
        try:
            catalog.save("a", values[str(number)], number)
        except StoreUnavailable:
            continue
        break
    assert number > 10
    found = Catalog(store).list_versions("a")
    settle(store, clock)
    assert str(number) in found
    for version in found:
        assert Catalog(store).load("a", version) == values[version]
    assert live(store) == named(store)


@pytest.mark.parametrize("store", (memory, file), indirect=True)
def test_a_remover_killed_anywhere(store, clock):
    """Whatever call a remover is killed at, its version is there whole, or goes away whole."""
    catalog = Catalog(store)
    value = os.urandom(CHUNKED)

    def remove(mortal, _number):
        if not catalog.has_object("a"):
            catalog.save("a", value)
        Catalog(mortal).remove("a")

    for _ in kill_each_call(store, remove):
        if catalog.has_object("a"):
            assert catalog["a"] == value
        settle(store, clock)
        assert live(store) == named(store)
    settle(store, clock)
    assert live(store) == set()


def test_records_that_cannot_be_read(store, clock, caplog):
    """A record that was altered, or that a newer offload wrote, doesn't let a sweep delete what it
    may name, nor anything else of the catalog.
    """
    catalog = Catalog(store)
    catalog.save("a", os.urandom(5000))
    catalog.save("b", os.urandom(5000))
    before = live(store)
    pointer = record_pointer("default", "a", "1")
    value = store.pointers.read(pointer)
    newer = seal(pointer, {"format": 9}, catalog._content().signing.keys)
    for text in (b"rubbish", newer):
        store.pointers.swap(pointer, store.pointers.read(pointer), text)
        settle(store, clock)
        assert live(store) == before
        assert catalog.has_object("b")
    assert "a@1" in caplog.text
    with pytest.raises(UnsupportedVersion):
        catalog.load("a")
    catalog.remove("b")
    store.pointers.swap(pointer, store.pointers.read(pointer), value)
    settle(store, clock)
    assert live(store) == named(store) != set()


def test_a_value_that_lost_its_blobs(store, clock):
    """A version that lost a blob doesn't stop a sweep, and others still load."""
    # The cache of this machine would still have what the store lost.
    catalog = Catalog(store, cache="off")
    catalog.save(["a", "b", "c"], [os.urandom(CHUNKED) for _ in range(3)])
    lost = catalog.info("b", "latest").digest
    store.blobs.delete([lost])
    settle(store, clock)
    with pytest.raises(BlobMissing, match="b@1"):
        catalog.load("b")
    assert len(catalog["a"]) == len(catalog["c"]) == CHUNKED
    catalog.remove("a")
    settle(store, clock)
    assert lost not in live(store)
    assert len(catalog["c"]) == CHUNKED


def test_young_holds_stay(clock, tmp_path):
    """What a saver holds without a record is released after a day, not before, and a dry run
    only says so.
    """
    for make in (memory, sqlite):
        with make(clock, tmp_path) as store:
            killed = list(kill_each_call(store, lambda m, n: Catalog(m).save("a", b"x" * 9000, n)))
            assert killed
            assert list(sweep_holds(store)) == []
            clock.advance(DAY * 1.5)
            left = list(sweep_holds(store, dry_run=True))
            assert {item.kind for item in left} == {"hold"}
            assert list(sweep_holds(store)) == left
            assert list(sweep_holds(store)) == []


def test_an_old_version_can_be_used(store, clock):
    """What was saved long ago can be copied, and held for a task, without its saver."""
    catalog = Catalog(store)
    value = os.urandom(CHUNKED)
    catalog.save("a", value)
    clock.advance(300 * DAY)
    sweep(store)
    fresh = Catalog(store)
    fresh.copy("a", "b")
    catalog.remove("a")
    assert store.blobs.hold(sorted(live(store)), 10 * DAY, "task:1") == set()
    settle(store, clock)
    assert Catalog(store)["b"] == value
    assert live(store) == named(store)


def test_a_saver_that_was_stopped(store, clock, monkeypatch):
    """A saver that is stopped before it sets its record, for so long that a sweep deletes its
    content, leaves no record of what is missing.
    """
    catalog = Catalog(store)
    catalog.save("a", os.urandom(5000))
    monkeypatch.setattr(catalog._content(), "now", clock)
    swap = type(store.pointers).swap

    def late(pointers, name, expected, value):
        if name == record_pointer("default", "a", "2") and value is not None:
            settle(store, clock)
        return swap(pointers, name, expected, value)

    monkeypatch.setattr(type(store.pointers), "swap", late)
    with pytest.raises(BlobMissing):
        catalog.save("a", os.urandom(5000))
    assert catalog.list_versions("a") == ["1"]
    settle(store, clock)
    assert live(store) == named(store) != set()
