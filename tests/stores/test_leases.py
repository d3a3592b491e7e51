"""A lease that is renewed while a block runs."""

from __future__ import annotations

import threading

import pytest

from offload.errors import StoreUnavailable
from offload.stores.leases import hold_lease
from offload.stores.memory import MemoryStore
from tests.support.processes import wait_until

NAME = "work"


class Leases:
    """Leases with given answers; counts calls."""

    def __init__(self, *renewals):
        self.renewals = iter(renewals)
        self.renewed = 0
        self.released = False

    def acquire(self, name, owner, ttl):
        return 7

    def renew(self, name, owner, ttl):
        self.renewed += 1
        answer = next(self.renewals, True)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def release(self, name, owner):
        self.released = True
        return True


def beats():
    return [t for t in threading.enumerate() if t.name == "offload-lease"]


def test_one_holds_it():
    """While one process holds the lease, another gets None; after the block it is free."""
    leases = MemoryStore().leases
    with hold_lease(leases, NAME, ttl=60) as first:
        assert first is not None
        with hold_lease(leases, NAME, ttl=60) as second:
            assert second is None
        with hold_lease(leases, NAME, ttl=60) as third:  # the loser hasn't released it either
            assert third is None
    with hold_lease(leases, NAME, ttl=60) as again:
        assert again.fence > first.fence


def test_it_is_renewed_until_the_block_ends():
    """A thread renews the lease and ends with the block, even if that raises."""
    leases = Leases()
    with pytest.raises(ZeroDivisionError), hold_lease(leases, NAME, ttl=0.03) as lease:
        wait_until(lambda: leases.renewed > 5, "it is renewed")
        assert not lease.lost.is_set()
        _ = 1 / 0
    assert leases.released
    assert beats() == []


def test_a_lost_lease_is_reported():
    """The holder can see that the lease was lost to another process."""
    leases = Leases(True, False)
    with hold_lease(leases, NAME, ttl=0.03) as lease:
        assert lease.lost.wait(20)


def test_a_lease_survives_an_outage_shorter_than_its_duration():
    """One failed renewal doesn't lose the lease; failures for its whole duration do."""
    unavailable = StoreUnavailable("away")
    leases = Leases(unavailable, True, True, *[unavailable] * 10_000)
    with hold_lease(leases, NAME, ttl=0.3) as lease:
        wait_until(lambda: leases.renewed >= 3, "it is renewed after the failure")
        assert not lease.lost.is_set()
        assert lease.lost.wait(20)
