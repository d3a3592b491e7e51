"""Of equal calls one computes, and only its result is remembered, whatever happens."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from offload.stores.memory import MemoryStore
from offload.stores.sqlite import SQLiteStore
from offload.testing.store import FakeClock
from tests.memo.model import machine

pytestmark = pytest.mark.timeout(120)


def prove(make, examples, clock_of=FakeClock):
    run_state_machine_as_test(
        machine(make, clock_of),
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_in_memory():
    """Hits, misses, deaths, expiry, forgetting, and code changes do as the model in memory."""
    prove(lambda clock: MemoryStore(clock=clock), 100)


def test_in_sqlite(tmp_path):
    """The same holds in a SQLite file."""
    numbers = itertools.count()

    def make(clock):
        return SQLiteStore(tmp_path / f"{next(numbers)}.db", clock=clock, fsync=False)

    prove(make, 10)
