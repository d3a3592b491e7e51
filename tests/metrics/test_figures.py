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
def test_a_quantile_bounds_the_true_one(seconds, part):
    """At least the requested share of durations is within the bound, and not within the one below
    it.
    """
    counters = Counters()
    for each in seconds:
        counters.took("fetch", each)
    figures = Figures({what.name: amount for what, amount in counters.take().items()})
    found = figures.quantile("fetch", part)
    within = sum(each <= found for each in seconds)
    assert within >= part * len(seconds)
    bounds = [0.0, *BOUNDS, inf]
    below = bounds[bounds.index(found) - 1]
    assert below == 0 or sum(each <= below for each in seconds) < part * len(seconds)
    assert figures.times("fetch")[-1] == len(seconds)
    assert figures.seconds("fetch") == pytest.approx(sum(seconds), abs=1e-6 * len(seconds))


def test_no_durations():
    """Without durations there is no quantile, and the total is 0."""
    assert Figures({}).quantile("fetch", 0.5) is None
    assert Figures({}).seconds("fetch") == 0
