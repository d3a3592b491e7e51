"""One sweep: what it returns, and that one sweeps at a time."""

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
    """Has *ended* to remove."""

    def __init__(self, *ended, **options):
        super().__init__(**options)
        self.ended = list(ended)
        self.asked = []

    def sweep(self, *, dry_run=False):
        self.asked.append(dry_run)
        yield from self.ended


class Refusing:
    """Pointers or leases that a store has not."""

    def __getattr__(self, name):
        def refuse(*args, **options):
            raise ConfigurationError("blobs only")

        return refuse


def test_totals_are_by_kind():
    """Everything that went is counted, with its bytes, and told as it goes."""
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
    """What expired goes; what lives stays; a dry run says the same and removes nothing."""
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
    """Who comes meanwhile does nothing and is told who sweeps; a dry run is not kept away."""
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


def test_the_lease_is_given_back_when_a_sweep_fails():
    """The next sweep need not wait for it to run out."""
    store = Sweepable(*ENDED)

    def fail(_swept):
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        sweep(store, seen=fail)
    assert last_sweep(store).ended is None
    assert sweep(store).count == 3


def test_a_store_without_leases_is_swept():
    """As fsspec's: several may sweep it, which is harmless."""
    store = Sweepable(*ENDED)
    store.pointers = store.leases = Refusing()
    assert sweep(store).count == 3


def test_a_refused_sweep_is_an_error():
    """Where sweeping itself is refused nobody takes it for a store without leases."""
    store = Sweepable()
    store.sweep = Refusing().sweep
    with pytest.raises(ConfigurationError):
        sweep(store)


def test_the_last_sweep_is_noted():
    """Its begin and end stand in the store; a dry run notes nothing."""
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


@pytest.mark.parametrize("note", (b"", b"{}", b"[]", b"\xff", b"5", json.dumps({"x": 1}).encode()))
def test_a_note_that_cannot_be_read_is_none(note):
    """A newer version's note, or a damaged one, keeps nobody from sweeping."""
    store = Sweepable(*ENDED)
    assert store.pointers.swap(NAME, None, note)
    assert last_sweep(store) is None
    assert sweep(store).count == 3
    assert last_sweep(store).ended


def test_a_busy_store_whose_sweeper_is_not_known():
    """A lease that somebody holds without a note is told as well as can be."""
    store = Sweepable(*ENDED)
    store.leases.acquire(NAME, "someone", 60)
    assert sweep(store) == SweepReport(store.url, busy="another process")
