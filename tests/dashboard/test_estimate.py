"""The page of thresholds shows the numbers of the estimate."""

from __future__ import annotations

import pytest

from offload.metrics.counters import SIZES, size_names
from offload.metrics.estimate import estimate
from offload.metrics.report import report
from offload.metrics.storage import sums_of
from offload.stores.sums import LABEL, CounterBatch
from tests.dashboard.test_pages import cells

pytestmark = pytest.mark.server


def counted(shop):
    """Count three values in each size class for one task; return their estimate."""
    found = {}
    for size in SIZES:
        for name, amount in zip(size_names(size), (3, 3 * size, size), strict=True):
            found[f"{name}{LABEL}shop.report{LABEL}"] = amount
    sums_of(shop.hook.store).add(CounterBatch("here", 1, found, found))
    return estimate(report(sums_of(shop.hook.store), tasks=True), shop.hook.settings.threshold)


def test_counted_values_are_estimated(shop):
    """Each threshold's row has its savings, and the advice names the best one."""
    told = counted(shop)
    assert told.total.values == 3 * len(SIZES)
    page = shop.client().get("/estimate").text
    for each in told.total.candidates:
        assert cells(page, f"{each.threshold:012}")[2] == f"{each.values:,}"
    assert told.advice in page.replace("&#39;", "'")
    assert cells(page, "shop.report")[1] == str(3 * len(SIZES))


def test_nothing_was_counted(shop):
    """Without counts, the page says so."""
    assert "No sizes have been counted yet." in shop.client().get("/estimate").text
