"""Retries of store calls."""

from __future__ import annotations

import logging

import pytest

from offload.content.retrying import Retrying
from offload.errors import BlobMissing, IntegrityError, StoreError, StoreUnavailable
from offload.settings import RetryPolicy


def failing(times, error=StoreUnavailable):
    """Return a function that fails so often, then returns the number of its calls."""
    calls = []

    def function():
        calls.append(1)
        if len(calls) <= times:
            raise error("redis://host:1/0 is unavailable")
        return len(calls)

    return function


def test_waits_grow_and_retries_are_counted():
    """Waits grow by the step up to the limit, and each retry is counted."""
    slept, retries = [], []
    policy = RetryPolicy(max_retries=5, interval_start=1, interval_step=3, interval_max=9)
    again = Retrying(
        policy, on_retry=lambda: retries.append(1), sleep=slept.append, chance=lambda: 0.5
    )
    assert again(failing(5)) == 6
    assert slept == [1, 4, 7, 9, 9]
    assert len(retries) == 5


@pytest.mark.parametrize(("chance", "wait"), ((0.0, 0.8), (0.5, 1.0), (1.0, 1.2)))
def test_a_fifth_of_each_wait_is_left_to_chance(chance, wait):
    """Each wait is random within 20 percent."""
    slept = []
    Retrying(RetryPolicy(interval_start=1), sleep=slept.append, chance=lambda: chance)(failing(1))
    assert slept == [pytest.approx(wait)]


def test_gives_up_with_the_last_error():
    """After the last retry, the last error is raised."""
    slept = []
    again = Retrying(RetryPolicy(max_retries=2), sleep=slept.append)
    with pytest.raises(StoreUnavailable, match="redis://host:1/0"):
        again(failing(3))
    assert len(slept) == 2


@pytest.mark.parametrize("error", (BlobMissing, IntegrityError, StoreError, ValueError))
def test_only_an_unavailable_store_is_retried(error):
    """An error that a retry can't fix is raised at once."""
    slept = []
    with pytest.raises(error):
        Retrying(RetryPolicy(), sleep=slept.append)(failing(1, error))
    assert not slept


def test_retries_are_logged(caplog):
    """Each retry is logged with the error and the wait."""
    with caplog.at_level(logging.WARNING, "offload"):
        Retrying(RetryPolicy(), sleep=lambda _: None)(failing(1))
    assert "store unavailable" in caplog.text


def test_nested_retries_do_not_multiply():
    """A nested retry runs once per attempt of the outer one."""
    calls = []

    def fail():
        calls.append(1)
        raise StoreUnavailable

    inner, outer = (Retrying(RetryPolicy(max_retries=3), sleep=lambda _: None) for _ in range(2))
    with pytest.raises(StoreUnavailable):
        outer(lambda: inner(fail))
    assert len(calls) == 4
    with pytest.raises(StoreUnavailable):
        inner(fail)
    assert len(calls) == 8
