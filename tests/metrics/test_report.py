"""Reports from stored counters."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from offload import Counters
from offload.errors import ConfigurationError
from offload.metrics.recorder import Recorder
from offload.metrics.report import by_store, report, timeline
from offload.metrics.storage import sums_of
from offload.stores.memory import MemoryStore
from offload.stores.sums import LABEL, CounterBatch, MemorySums
from offload.stores.tiered import TieredStore
from offload.testing.store import FakeClock

DAY = 86400
NOON = 20_000 * DAY + DAY // 2


@pytest.fixture
def clock():
    return FakeClock(float(NOON))


@pytest.fixture
def tallies(clock):
    return MemorySums(clock)


def count(tallies, number, **amounts):
    """Add a batch of ``task__argument=amount`` values seen."""
    total = {LABEL.join(("values_seen", *what.split("__"))): n for what, n in amounts.items()}
    series = {}
    for what, n in amounts.items():
        text = LABEL.join(("values_seen", what.split("__")[0], ""))
        series[text] = series.get(text, 0) + n
    tallies.add(CounterBatch("p", number, total, series))


def test_all_by_task_by_argument(tallies):
    """A report has the total, figures by task, and figures by argument."""
    count(tallies, 1, a__x=1, a__y=2, b__x=4)
    found = report(tallies)
    assert found.start is None
    assert found.total["values_seen"] == 7
    assert {task: each["values_seen"] for task, each in found.tasks.items()} == {"a": 3, "b": 4}
    assert {key: each["values_seen"] for key, each in found.arguments.items()} == {
        ("a", "x"): 1,
        ("a", "y"): 2,
        ("b", "x"): 4,
    }


@pytest.mark.parametrize(
    ("since", "expected"), ((600, 1), (3 * 3600, 3), (5 * 3600, 3), (2 * DAY, 7), (89 * DAY, 15))
)
def test_reports_can_be_limited_in_time(tallies, clock, since, expected):
    """Reports can be limited to minutes, hours, or days, for as long as each is kept."""
    for number, ago in enumerate((30 * DAY, DAY, 2 * 3600, 60)):
        clock.now = NOON - ago
        count(tallies, number, a__x=2 ** (3 - number))
    clock.now = NOON
    assert report(tallies, since, now=clock).total["values_seen"] == expected


def test_separate_tasks_are_kept_by_hour(tallies, clock):
    """Separate tasks are kept by hour; minutes only have the total."""
    count(tallies, 1, a__x=1)
    assert report(tallies, 600, now=clock).tasks == {}
    found = report(tallies, 600, tasks=True, now=clock)
    assert {task: each["values_seen"] for task, each in found.tasks.items()} == {"a": 1}


def test_a_range_beyond_all_entries_is_refused(tallies, clock):
    """A range longer than entries are kept is a ConfigurationError."""
    with pytest.raises(ConfigurationError, match="90 days"):
        report(tallies, 91 * DAY, now=clock)


def test_old_minutes_are_dropped(tallies, clock):
    """The series is bounded, and the total keeps everything."""
    for hour in range(200):
        clock.now = NOON + hour * 3600
        count(tallies, hour, a__x=1)
    assert len(tallies.series("minute")) <= 4
    assert len(tallies.series("hour")) <= 73
    assert report(tallies, now=clock).total["values_seen"] == 200


def test_a_timeline_is_in_order(tallies, clock):
    """The entries of a timeline are sorted by time."""
    for number, hour in enumerate((3, 1, 2)):
        clock.now = NOON + hour * 3600
        count(tallies, number, a__x=hour)
    line = timeline(tallies, "hour")
    assert [each["values_seen"] for each in line.values()] == [1, 2, 3]
    assert list(line) == sorted(line)


def test_counts_of_a_newer_version_are_read(tallies):
    """Unknown names and labels of a newer version are added up."""
    texts = {"values_tasted": 1, LABEL.join(("values_seen", "t", "x", "region")): 2, "": 3}
    tallies.add(CounterBatch("p", 1, texts, texts))
    found = report(tallies)
    assert found.total["values_tasted"] == 1
    assert found.tasks["t"]["values_seen"] == 2


def tiers():
    return TieredStore(MemoryStore("one"), [MemoryStore("two")])


def count_stores(tallies):
    counters = Counters()
    recorder = Recorder(counters, 10)
    recorder.attach(SimpleNamespace(url="memory://", sums=tallies))
    counters.add(values_offloaded=3, blobs_uploaded=5, store_retries=2, errors_unavailable=1)
    counters.of_store("memory://one", blobs_uploaded=4, bytes_stored=40)
    counters.of_store("memory://gone", calls_failed=1)
    counters.took("fetch", 0.002, store="memory://one")
    recorder.write()


@pytest.mark.parametrize("since", (None, 86400))
def test_tiers_are_separate(tallies, clock, since):
    """Current tiers are listed in order, also without figures, and then former ones."""
    count_stores(tallies)
    found = by_store(report(tallies, since, tasks=True, now=clock), tiers())
    assert list(found) == ["memory://one", "memory://two", "memory://gone"]
    assert found["memory://one"]["bytes_stored"] == 40
    assert found["memory://one"].quantile("fetch", 0.5) == 0.0025
    assert found["memory://two"].counts == {}
    assert found["memory://gone"]["calls_failed"] == 1


@pytest.mark.parametrize("since", (None, 60, 86400))
def test_counts_of_tiers_are_not_added_to_the_total(tallies, clock, since):
    """Counts of tiers are already included in the total, also by minute, which has no labels."""
    count_stores(tallies)
    total = report(tallies, since, now=clock).total
    assert total["blobs_uploaded"] == 5
    assert not [name for name in total.counts if "of_store" in name]
    assert total.times("fetch")[-1] == 0


def test_a_single_store_has_the_total(tallies):
    """For a single store, nothing more is counted."""
    count_stores(tallies)
    store = MemoryStore("single")
    [(url, figures)] = by_store(report(tallies), store).items()
    assert url == "memory://single"
    assert figures["blobs_uploaded"] == 5
    assert figures["calls_failed"] == 3


def test_a_store_without_statistics():
    """A store that can't keep statistics is named in the error."""
    with pytest.raises(ConfigurationError, match="can't keep statistics"):
        sums_of(SimpleNamespace(url="theirs://"))
