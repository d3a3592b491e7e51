"""Counters of one process."""

from __future__ import annotations

import os
import threading

import pytest

from offload import Counters


def test_counters_only_take_known_names():
    """An undocumented name can't be counted."""
    with pytest.raises(KeyError):
        Counters().add(no_such_counter=1)


def test_counters_are_exact_among_threads():
    """No count is lost when threads count at once."""
    counters = Counters()

    def count():
        for _ in range(2000):
            counters.add(values_seen=1)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.snapshot()["values_seen"] == 16_000


def test_a_forked_child_counts_from_zero_though_the_parent_held_the_lock():
    """A child neither inherits its parent's counts nor waits for its parent's lock."""
    counters = Counters()
    counters.add(values_seen=5)
    with counters._lock:
        child = os.fork()
        if not child:  # pragma: no cover (another process)
            counters.add(values_seen=1)
            os._exit(counters.snapshot()["values_seen"])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert counters.snapshot()["values_seen"] == 5


def test_pending_counts_are_bounded():
    """Memory stays bounded if the numbers are never read."""
    counters = Counters()
    for _ in range(5000):
        counters.add(values_seen=1)
        with counters.timed("hash"):
            pass
        counters.sized(2000, 0)
    assert len(counters._waiting) < 1000
    taken = {what.name: amount for what, amount in counters.take().items()}
    assert taken["values_seen"] == taken["size_10"] == 5000
    assert taken["size_10_bytes"] == 10_000_000
    assert "size_10_repeated" not in taken


def test_counts_are_taken_once_and_stay_in_the_snapshot():
    """Each count is taken once, and the snapshot keeps the sum of all."""
    counters = Counters()
    counters.add(values_seen=2)
    assert counters.take()
    counters.add(values_seen=1)
    assert [*counters.take().values()] == [1]
    assert counters.take() == {}
    assert counters.snapshot()["values_seen"] == 3


def test_counts_taken_while_threads_count_are_complete():
    """No count is lost or doubled when numbers are taken while threads count."""
    counters = Counters()
    threads = [
        threading.Thread(target=lambda: [counters.add(values_seen=1) for _ in range(3000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    taken = 0
    while any(thread.is_alive() for thread in threads):
        taken += sum(counters.take().values())
    taken += sum(counters.take().values())
    assert taken == 12_000
    assert counters.snapshot()["values_seen"] == 12_000
