"""Sweeps: their totals, and the lease that allows one at a time."""

from __future__ import annotations

import json

import pytest

from offload.errors import ConfigurationError, StoreUnavailable
from offload.gc import NAME, SweepReport, Total, last_sweep, sweep
from offload.stores import SweepItem
from offload.stores.file import FileStore
from offload.stores.memory import MemoryStore
from offload.testing.store import FakeClock, blobs

ENDED = [
    SweepItem("blob", "b3:1", 10, "expired 5 s ago"),
    SweepItem("blob", "b3:2", 20, "expired 9 s ago"),
    SweepItem("file", "x", 5, "left by a killed writer"),
]


class Sweepable(MemoryStore):
    """A store with *ended* to sweep."""

    def __init__(self, *ended, **options):
        super().__init__(**options)
        self.ended = list(ended)
        self.asked = []

    def sweep(self, *, dry_run=False):
        self.asked.append(dry_run)
        yield from self.ended


class Refusing:
    """Pointers or leases of a store without any."""

    def __getattr__(self, name):
        def refuse(*args, **options):
            raise ConfigurationError("blobs only")

        return refuse


def test_totals_are_by_kind():
    """Everything removed is counted with its bytes, and reported as it is removed."""
    store = Sweepable(*ENDED)
    seen = []
    collected = sweep(store, seen=seen.append)
    assert seen == ENDED
    assert collected.kinds == {"blob": Total(2, 30), "file": Total(1, 5)}
    assert (collected.count, collected.size, collected.busy) == (3, 35, None)
    assert collected.as_dict() == {
        "store": store.url,
        "dry_run": False,
        "busy": None,
        "count": 3,
        "bytes": 35,
        "kinds": {"blob": {"count": 2, "bytes": 30}, "file": {"count": 1, "bytes": 5}},
        "seconds": pytest.approx(collected.seconds, abs=0.001),
    }


def test_a_real_store(tmp_path):
    """Expired blobs are removed, and live ones stay; a dry run reports the same and removes
    nothing.
    """
    clock = FakeClock()
    store = FileStore(tmp_path, clock=clock, skew=1)
    old, new = blobs(3), blobs(2)
    store.blobs.put(old, 10)
    clock.advance(60)
    store.blobs.put(new, 10)
    dry = sweep(store, dry_run=True)
    assert dry.count == 3
    assert sweep(store, dry_run=True).kinds == dry.kinds
    assert sweep(store).kinds == dry.kinds
    assert sweep(store).count == 0
    assert store.blobs.hold(list(new), 1) == set()


def test_one_sweeps_at_a_time():
    """A second sweep does nothing and reports the first; a dry run isn't blocked."""
    store = Sweepable(*ENDED)
    others = []

    def meanwhile(_swept):
        others.append((sweep(store), sweep(store, dry_run=True)))

    assert sweep(store, seen=meanwhile).count == 3
    assert store.asked == [False, True, True, True]
    for busy, dry in others:
        assert busy.count == 0
        assert busy.busy.startswith(last_sweep(store).by)
        assert dry.busy is None
        assert dry.count == 3
    assert sweep(store).busy is None


def test_the_lease_is_released_when_a_sweep_fails():
    """If a sweep fails, its lease is released, so that the next one needn't wait."""
    store = Sweepable(*ENDED)

    def fail(_swept):
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        sweep(store, seen=fail)
    assert last_sweep(store).ended is None
    assert sweep(store).count == 3


def test_a_store_without_leases_is_swept():
    """A store without leases, such as fsspec's, allows several sweeps at once: no harm done."""
    store = Sweepable(*ENDED)
    store.pointers = store.leases = Refusing()
    assert sweep(store).count == 3


def test_a_refused_sweep_is_an_error():
    """A store that refuses sweeps isn't treated as one without leases."""
    store = Sweepable()
    store.sweep = Refusing().sweep
    with pytest.raises(ConfigurationError):
        sweep(store)


def test_the_last_sweep_is_recorded():
    """The start and end of a sweep are recorded in the store, but not those of a dry run."""
    store = Sweepable()
    sweep(store, dry_run=True)
    assert last_sweep(store) is None
    sweep(store)
    first = last_sweep(store)
    assert first.began <= first.ended
    store.sweep = Refusing().sweep
    with pytest.raises(ConfigurationError):
        sweep(store)
    second = last_sweep(store)
    assert second.ended == first.ended < second.began


@pytest.mark.parametrize(
    "note",
    (
        *(b"", b"{}", b"[]", b"\xff", b"5", json.dumps({"x": 1}).encode(), b"[" * 60_000),
        *(b'{"by": 5, "began": 1}', b'{"by": "x", "began": "y"}', b'{"by": "x", "began": 1e300}'),
    ),
    ids=lambda note: note[:20],
)
def test_an_unreadable_record_is_ignored(note):
    """A record of a newer version, or a damaged one, doesn't prevent a sweep."""
    store = Sweepable(*ENDED)
    assert store.pointers.swap(NAME, None, note)
    assert last_sweep(store) is None
    assert sweep(store).count == 3
    assert last_sweep(store).ended


def test_a_busy_store_with_an_unknown_sweeper():
    """A lease without a record is reported as far as possible."""
    store = Sweepable(*ENDED)
    store.leases.acquire(f"lock/{NAME}", "someone", 60)
    assert sweep(store) == SweepReport(store.url, busy="another process")
