"""A worker that lacks the library: a clear failure, and never a task run on a reference."""

from __future__ import annotations

import pytest
from faults import BIG, a_setup

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def setups(broker, store, tmp_path_factory):
    """One worker that accepts everything and cannot import offload."""
    conf = {"accept_content": ["json", "pickle", "msgpack", "yaml"]}
    with a_setup(broker, store, tmp_path_factory.mktemp("without"), conf) as made:
        made.shared = made.worker(block=True)
        yield made


NATIVES = ("json", "pickle", "msgpack", "yaml")


def test_what_travels_along_is_not_run_on_a_reference(setups):
    """A chain's later task, whose argument is a reference, is not entered either."""
    setup = setups
    chained = (setup.task("take").si("x") | setup.task("size").si(BIG)).delay()
    probe = setup.task("size").delay("small")
    setup.wait(probe)
    assert setup.entered(chained) == []


def test_small_tasks_run_there(setups):
    """Messages without references are plain Celery's, for any worker."""
    for native in NATIVES:
        app = setups.publisher(conf={"task_serializer": native})
        result = setups.task("take", app).delay("small", config={"a": [1, 2]})
        assert setups.wait(result).get() == "small"
