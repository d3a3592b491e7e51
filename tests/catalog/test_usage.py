"""Use of objects is counted by object over time, in bounded numbers, without requests."""

from __future__ import annotations

import pytest

from offload import Catalog, open_store
from offload.inspect.catalog import describe_usage, usage_of
from offload.metrics.counters import Counters
from offload.metrics.report import Usage, report, usage
from offload.metrics.storage import sums_of
from offload.stores.sums import LABEL, SPANS, CounterBatch, MemorySums
from offload.testing.store import FakeClock
from tests.support.processes import wait_until
from tests.support.wire import make_wire

NAME = "größe/a model:x"
LARGE = b"x" * 3_000_000
DAY = 86400


@pytest.fixture
def wire(tmp_path):
    wire = make_wire(store=f"sqlite://{tmp_path}/store.db", cache=str(tmp_path / "cache"))

    @wire.app.task(name="usage.score", shared=False)
    def score(model):
        return len(model)

    wire.score = score
    return wire


def used(wire):
    return usage_of(wire.hook._runtime)


def test_each_use_counts_for_its_object(wire):
    """Loads, those from the node cache, references, and late arguments count for the object that
    they are of, in its bucket, and failures for none.
    """
    catalog = wire.hook.catalog
    catalog.save([NAME, "other"], [LARGE, LARGE])
    team = catalog.bucket("team-a")
    team.save(NAME, 1)
    catalog.load(NAME)
    catalog.load([NAME, NAME, "missing"])
    assert team[NAME] == 1
    wire.run(wire.score, catalog.ref(NAME))
    wire.run(wire.score, catalog.late("other"))
    wire.run(wire.score, catalog.late("other", "latest"))
    wire.hook.get(catalog.late("other"))
    found = used(wire)
    assert found.keys() == {("default", NAME), ("default", "other"), ("team-a", NAME)}
    mine = found["default", NAME]
    assert (mine.loads, mine.hits, mine.refs, mine.late, mine.uses) == (3, 2, 1, 0, 4)
    assert (found["default", "other"].late, found["default", "other"].loads) == (3, 0)
    assert found["team-a", NAME].loads == 1
    total = report(sums_of(wire.hook.store)).total
    assert (total["catalog_loads"], total["catalog_refs"], total["catalog_late"]) == (4, 1, 3)


def test_uses_are_kept_over_time_only(wire):
    """Names of objects come and go: the total, which is kept forever, and tables of stores and
    workers have none of them.
    """
    wire.hook.catalog.save("a", 1)
    wire.hook.catalog.load("a")
    assert used(wire)["default", "a"].loads == 1
    sums = sums_of(wire.hook.store)
    assert not any("object:" in text for text in sums.total())
    found = report(sums, DAY, tasks=True)
    assert (found.stores, found.workers) == ({}, {})
    assert found.total["catalog_loads"] == 1


def test_the_last_use_is_known_to_the_hour_then_to_the_day():
    """The last use is the start of its hour for three days, and of its day for 90 days."""
    clock = FakeClock()
    sums, at = MemorySums(clock), clock()
    text = LABEL.join(("of_store_catalog_loads", "", "", "object:default/a"))
    sums.add(CounterBatch("p", 1, {}, {text: 1}))
    (found,) = usage(sums).values()
    assert found == Usage(loads=1, last=at - at % SPANS["hour"])
    clock.advance(10 * DAY)
    (found,) = usage(sums).values()
    assert found == Usage(loads=1, last=at - at % DAY)
    clock.advance(100 * DAY)
    assert usage(sums) == {}
    assert describe_usage(None)["last_used"] is None


@pytest.mark.parametrize(
    "kind", ("memory", pytest.param("redis", marks=pytest.mark.server)), ids=str
)
def test_objects_leave_room_for_tasks(make_urls, monkeypatch, kind):
    """Objects take at most half of the names that an hour or a day has."""
    monkeypatch.setattr("offload.stores.sums.FIELDS", 20)
    monkeypatch.setattr("offload.stores.redis.store.FIELDS", 20)
    sums = sums_of(open_store(make_urls(kind)))
    label = "of_store_catalog_loads\x1f\x1f\x1fobject:default/{}".format
    sums.add(CounterBatch("p", 1, {}, {label(n): 1 for n in range(50)}))
    sums.add(CounterBatch("p", 2, {}, {f"values_seen\x1ftask{n}\x1f": 1 for n in range(5)}))
    assert len(usage(sums)) == 10
    assert {f"task{n}" for n in range(5)} <= set(report(sums, DAY, tasks=True).tasks)


def test_a_process_counts_few_objects_between_two_writes():
    """No matter how many objects a process loads, there is room for the labels of its tasks."""
    counters = Counters()
    for number in range(5_000):
        counters.of_object("default", str(number), catalog_loads=1)
    with counters.about("a task"):
        counters.add(values_seen=1)
    taken = counters.take()
    assert len(taken) <= 1_005
    assert sum(n for each, n in taken.items() if each.store) == 5_000
    assert [n for each, n in taken.items() if each.task == "a task"] == [1]


def test_a_catalog_without_an_app_counts_if_asked(make_urls, tmp_path):
    """With ``stats_interval``, a catalog without an app writes to its store's statistics; loads
    from local copies are hits.
    """
    url = make_urls("memory")
    silent = Catalog(url, cache_dir=tmp_path / "copies")
    silent.save("a", [1] * 100)
    silent.load("a")
    catalog = Catalog(url, cache_dir=tmp_path / "copies", stats_interval=0.01)
    catalog.load("a")
    catalog.load("a", "1")
    expected = {("default", "a"): (2, 2)}
    found = lambda: {k: (u.loads, u.hits) for k, u in usage(sums_of(catalog.store)).items()}
    wait_until(lambda: found() == expected, "both loads to be counted")
