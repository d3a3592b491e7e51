"""Counters of one process."""

from __future__ import annotations

import os
import threading

import pytest

from offload import Counters


def test_counters_only_take_known_names():
    """A name that is not documented cannot be counted."""
    with pytest.raises(KeyError):
        Counters().add(no_such_counter=1)


def test_counters_are_exact_among_threads():
    """Nothing is lost when threads count at once."""
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
