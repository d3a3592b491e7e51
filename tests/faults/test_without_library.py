"""A worker without the library fails clearly, and never runs a task on a reference."""

from __future__ import annotations

import pytest
from faults import BIG, make_setup

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def setups(broker, store, tmp_path_factory):
    """Return a setup with one worker that accepts everything and can't import offload."""
    conf = {"accept_content": ["json", "pickle", "msgpack", "yaml"]}
    with make_setup(broker, store, tmp_path_factory.mktemp("without"), conf) as made:
        made.shared = made.worker(block=True)
        yield made


NATIVES = ("json", "pickle", "msgpack", "yaml")


def test_a_later_task_is_not_run_on_a_reference(setups):
    """A chain's later task whose argument is a reference doesn't run either."""
    setup = setups
    chained = (setup.task("take").si("x") | setup.task("size").si(BIG)).delay()
    probe = setup.task("size").delay("small")
    setup.wait(probe)
    assert setup.entered(chained) == []


def test_small_tasks_run_there(setups):
    """Any worker runs messages without references, which are plain Celery's."""
    for native in NATIVES:
        app = setups.publisher(conf={"task_serializer": native})
        result = setups.task("take", app).delay("small", config={"a": [1, 2]})
        assert setups.wait(result).get() == "small"
