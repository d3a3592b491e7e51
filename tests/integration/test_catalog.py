"""Objects of the catalog as arguments of tasks, and results in the catalog, on a real worker."""

from __future__ import annotations

import os

import pytest
from celery import chain, chord, group
from celery.utils import uuid

from offload import ObjectNotFound
from offload.metrics.report import report
from offload.metrics.storage import sums_of
from tests.integration.catalog import create, model_of
from tests.support.apps import current
from tests.support.processes import wait_until, worker

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

TIMEOUT = 30
SIZE = 300_000


@pytest.fixture(scope="module")
def config(redis, tmp_path_factory):
    name = f"catalog-{os.getpid()}-{os.urandom(3).hex()}"
    cache = tmp_path_factory.mktemp("cache")
    return {
        "url": redis.url,
        "store": f"{redis.url}?prefix={name}",
        "queue": name,
        "cache": str(cache),
    }


@pytest.fixture(scope="module")
def app(config, tmp_path_factory):
    app = create({**config, "cache": "off"})
    folder = tmp_path_factory.mktemp("worker")
    with worker(folder, {**config, "offload": True}, app="tests.integration.catalog"), current(app):
        yield app
    app._offload.store.close()


@pytest.fixture
def catalog(app):
    return app._offload.catalog


@pytest.fixture
def name(catalog):
    name = f"model:{uuid()}"
    catalog.save(name, model_of(1))
    return name


@pytest.fixture(params=["json", "pickle"])
def serializer(request, app):
    app.conf.task_serializer = app.conf.result_serializer = request.param
    yield request.param
    app.conf.task_serializer = app.conf.result_serializer = "json"


def test_calls(app, catalog, name, serializer):
    """A call receives the pinned version by `ref`, even if removed, and the current one late."""
    score, lazy = app.tasks["score"], app.tasks["lazy"]
    later = {"queue": f"later-{uuid()}"}  # that no worker consumes yet
    results = [
        score.apply_async((catalog.ref(name), 7), **later),
        score.apply_async((), {"model": catalog.late(name)}, **later),
        lazy.apply_async((catalog.late(name),), **later),
    ]
    catalog.save(name, model_of(2))
    catalog.remove(name, 1)
    app.control.add_consumer(later["queue"])
    assert [result.get(timeout=TIMEOUT) for result in results] == [
        *([1, SIZE, 7], [2, SIZE, None], 2)
    ]


def test_chains(app, catalog, name, serializer):
    """A late object in a later step is what an earlier step has saved."""
    steps = chain(
        app.tasks["train"].s(5),
        app.tasks["release"].s(name),
        app.tasks["score"].si(catalog.late(name), "last"),
    )
    result = steps.apply_async()
    assert result.get(timeout=TIMEOUT) == [5, SIZE, "last"]
    first = result.parent.parent
    assert catalog.load(f"train:{first.id}") == model_of(5)


def test_groups_and_chords(app, catalog, name, serializer):
    """Parts of a group, of a chord, and its body receive late objects."""
    late = catalog.late(name)
    score = app.tasks["score"]
    parts = group(score.s(late, number) for number in range(4))()
    assert parts.get(timeout=TIMEOUT) == [[1, SIZE, number] for number in range(4)]
    body = score.si(late, "body")
    release = app.tasks["release"].si(model_of(3), name)
    result = chord([release, release], body)()
    assert result.get(timeout=TIMEOUT) == [3, SIZE, "body"]


def test_retries(app, catalog, name, serializer):
    """A task that retries keeps its value, while others receive the newest."""
    assert app.tasks["flaky"].delay(catalog.late(name), name).get(timeout=TIMEOUT) == 1
    assert app.tasks["score"].delay(catalog.late(name)).get(timeout=TIMEOUT)[0] == 101


def test_a_missing_object(app, catalog, serializer):
    """The error of a missing object arrives with its type, and names task and argument."""
    result = app.tasks["score"].delay(catalog.late("missing:model"))
    with pytest.raises(ObjectNotFound, match=r"task 'score', model: .* no object 'missing:model'"):
        result.get(timeout=TIMEOUT)


def test_a_machine_downloads_an_object_once(app, catalog):
    """Of several calls on one machine, the first fetches a large object; others have it cached."""
    name = f"large:{uuid()}"
    catalog.save(name, {"version": 1, "weights": os.urandom(3_000_000)})
    for number in range(6):
        late = catalog.late(name) if number % 2 else catalog.ref(name)
        assert app.tasks["large"].delay(late, number).get(timeout=TIMEOUT) == 3_000_000
    expected = {"cache_misses": 1, "cache_hits": 5, "catalog_late": 3}

    def is_counted():
        counts = dict(report(sums_of(app._offload.store), None, tasks=True).tasks)["large"]
        return {key: counts[key] for key in expected} == expected

    wait_until(is_counted, f"the task's counters are {expected}")
