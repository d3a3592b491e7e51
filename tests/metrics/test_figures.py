"""Figures derived from counters."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload import Counters
from offload.metrics.counters import BOUNDS
from offload.metrics.report import Figures


def test_the_deduplication_ratio():
    """The ratio is offloaded bytes to uploaded bytes, or None without any."""
    assert Figures({}).deduplication is None
    assert Figures({"bytes_offloaded": 10}).deduplication == inf
    assert Figures({"bytes_offloaded": 10, "bytes_uploaded": 4}).deduplication == 2.5


def test_the_hit_rate():
    """The hit rate is hits over lookups, and None where the cache had no lookup."""
    assert Figures({"values_fetched": 7}).hit_ratio is None
    assert Figures({"cache_hits": 3, "cache_misses": 1, "values_fetched": 9}).hit_ratio == 0.75


def test_what_memo_saves():
    """The hit rate is hits over hits and computations; uncached calls aren't in it."""
    figures = Figures({"memo_hits": 3, "memo_misses": 1, "memo_uncached": 5})
    assert (figures.memo_lookups, figures.memo_hit_ratio) == (4, 0.75)
    assert Figures({"memo_milliseconds_saved": 1500}).memo_seconds_saved == 1.5
    assert Figures({"memo_uncached": 1}).memo_hit_ratio is None
    assert Figures({"memo_uncached": 1}).uses_memo
    assert not Figures({"memo_hits": 0, "values_seen": 1}).uses_memo


def test_only_nonzero_errors_are_listed():
    """Errors are listed by kind, except those that didn't occur."""
    counts = {"errors_missing": 2, "errors_other": 0, "values_seen": 1}
    assert Figures(counts).errors == {"missing": 2}


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.floats(0.01, 1))
def test_a_quantile_is_in_the_bucket_of_the_true_one(seconds, part):
    """A quantile lies in the bucket of the true one, between its bounds."""
    counters = Counters()
    for each in seconds:
        counters.took("fetch", each)
    figures = Figures({what.name: amount for what, amount in counters.take().items()})
    found = figures.quantile("fetch", part)
    bounds = [0.0, *BOUNDS, inf]
    high = next(b for b in bounds if sum(s <= b for s in seconds) >= part * len(seconds) and b)
    low = bounds[bounds.index(high) - 1]
    assert low * 0.95 <= found <= high * 1.05  # it is rounded
    assert figures.times("fetch")[-1] == len(seconds)
    assert figures.seconds("fetch") == pytest.approx(sum(seconds), abs=1e-6 * len(seconds))


def test_quantiles_are_interpolated():
    """Quantiles differ within a bucket, and beyond the last bound are infinite."""
    counters = Counters()
    for _ in range(100):
        counters.took("fetch", 0.01)  # between 4 and 16 ms
    figures = Figures({what.name: amount for what, amount in counters.take().items()})
    assert figures.quantile("fetch", 0.5) == 0.01
    assert figures.quantile("fetch", 0.25) == 0.007
    assert figures.quantile("fetch", 1) == 0.016
    assert Figures({f"fetch_seconds_{len(BOUNDS)}": 1}).quantile("fetch", 0.5) == inf


def test_shares_of_bytes():
    """What is kept out of messages and of the store is a share of the bytes sent by reference."""
    figures = Figures({"values_offloaded": 2, "bytes_offloaded": 4000, "bytes_stored": 1000})
    assert figures.kept_out == 0.9
    assert figures.stored_less == 0.75
    assert Figures({}).kept_out is None
    assert Figures({}).stored_less is None
    small = Figures({"values_offloaded": 9, "bytes_offloaded": 900, "bytes_stored": 999})
    assert (small.kept_out, small.stored_less) == (0, 0)


def test_no_durations():
    """Without durations there is no quantile, and the total is 0."""
    assert Figures({}).quantile("fetch", 0.5) is None
    assert Figures({}).seconds("fetch") == 0
