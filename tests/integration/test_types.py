"""Registered types between processes: a publisher and a worker that were not forked together."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from offload import UnknownType, UnknownTypeVersion
from tests.integration.types_app import (
    Line,
    Newer,
    Order,
    Sent,
    Track,
    create,
    numbers,
    register,
)
from tests.serializers.conftest import Types
from tests.support.processes import worker

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

TIMEOUT = 60


@pytest.fixture(scope="module")
def tasks(redis, tmp_path_factory):
    """Return the publisher's tasks; it registers other types than the worker."""
    config = {"url": redis.url, "queue": uuid.uuid4().hex}
    types = Types()
    register(worker=False)
    folder = tmp_path_factory.mktemp("types")
    try:
        with worker(folder, config, concurrency=1, app="tests.integration.types_app"):
            app = create(config)
            yield app.tasks
            app.close()
    finally:
        types.clear()


def run(task, *args, **kwargs):
    return task.delay(*args, **kwargs).get(timeout=TIMEOUT)


def test_arguments_and_results_arrive_in_their_classes(tasks):
    """A worker gets values of registered types, nested ones included, and returns some; small ones
    travel in the message, large ones through the store.
    """
    for count in (1, 5000):
        track = Track(numbers()[:count], "km")
        order = Order(7, [Line("a", track), Line("b")])
        kind, lines, sums = run(tasks["describe"], order, {"x": track, "y": track})
        assert (kind, lines) == ("Order", [["Line", "Track"], ["Line", "NoneType"]])
        assert sums == dict.fromkeys("xy", float(track.points.sum()))
        arrived = run(tasks["echo"], [order], more=track)[0]
        assert (type(arrived), type(arrived.lines[0])) == (Order, Line)
        assert arrived.lines[0].track.unit == "km"
        np.testing.assert_array_equal(arrived.lines[0].track.points, track.points)


def test_calls_with_equal_values_are_computed_once(tasks):
    """Equal values of a registered type make equal memo keys in both processes, and a remembered
    result of such a type is read in its class.
    """
    first, doubled = run(tasks["once"], Track(numbers()))
    again, remembered = run(tasks["once"], Track(numbers()))
    other, _ = run(tasks["once"], Track(numbers(1)))
    assert first == again != other
    for each in (doubled, remembered):
        assert type(each) is Track
        np.testing.assert_array_equal(each.points, numbers() * 2)


def test_the_catalog_hands_them_over(tasks):
    """A worker loads an object of a registered type that a publisher saved, and saves another."""
    catalog = tasks["save"].app.offload.catalog
    catalog.save("given", Track(numbers(), "km"))
    tasks["save"].delay("given").get(timeout=TIMEOUT)
    doubled = catalog.load("doubled")
    assert (type(doubled), doubled.unit) == (Track, "km")
    np.testing.assert_array_equal(doubled.points, numbers() * 2)


@pytest.mark.parametrize("size", (1, 5000))
def test_a_type_that_one_side_lacks_is_named(tasks, size):
    """A task fails if its worker lacks a type, or has an older version of it, and so does reading a
    result whose type the reader lacks; the error names task and type, and the worker goes on.
    """
    module = "tests.integration.types_app"
    failed = tasks["echo"].delay(1, more=Sent([5] * size))
    with pytest.raises(UnknownType, match=rf"task 'echo', more: .*'{module}.Sent'"):
        failed.get(timeout=TIMEOUT)
    with pytest.raises(UnknownTypeVersion, match=rf"task 'echo', .*'{module}.Newer' in version 2"):
        run(tasks["echo"], Newer([5] * size))
    with pytest.raises(UnknownType, match=rf"result: .*'{module}.Made'.*register_type"):
        run(tasks["make"], size)
    assert run(tasks["echo"], size) == size
