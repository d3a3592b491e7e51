"""A worker that lacks the library: a clear failure, and never a task run on a reference."""

from __future__ import annotations

import pytest
from faults import BIG, a_setup

from offload.testing.servers import wait_until

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def setups(broker, store, tmp_path_factory):
    """One worker that accepts everything and cannot import offload."""
    conf = {"accept_content": ["json", "pickle", "msgpack", "yaml"]}
    with a_setup(broker, store, tmp_path_factory.mktemp("without"), conf) as made:
        made.shared = made.worker(block=True)
        yield made


SAID = {
    "json": ("Unsupported type", "offload"),
    "pickle": ("No module named 'offload",),  # its command is there, as celery looks for those
    "msgpack": ("keywords must be strings", "__offload__"),
    "yaml": ("keywords must be strings", "__offload__"),
}


@pytest.mark.parametrize("name", ("size", "take", "take_anything"))
@pytest.mark.parametrize("native", SAID)
def test_a_worker_without_the_library(setups, native, name):
    """The task fails, or its message is refused in the log, with words that lead to the cause;
    its function is not entered, whatever parameters it takes, and the worker lives.
    """
    setup = setups
    app = setup.publisher(conf={"task_serializer": native})
    seen = len(setup.shared.log)
    result = setup.task(name, app).delay(BIG)

    def said():
        new = setup.shared.log[seen:]
        return any(word in new for word in SAID[native])

    wait_until(said, "the log says why", 30)
    assert setup.entered(result) == []
    probe = setup.task("size", app).delay("small")
    assert setup.wait(probe).get() == ["str", 5]
    assert setup.entered(result) == []
    if native in ("msgpack", "yaml"):
        assert setup.failure(result)


def test_what_travels_along_is_not_run_on_a_reference(setups):
    """A chain's later task, whose argument is a reference, is not entered either."""
    setup = setups
    chained = (setup.task("take").si("x") | setup.task("size").si(BIG)).delay()
    probe = setup.task("size").delay("small")
    setup.wait(probe)
    assert setup.entered(chained) == []


def test_small_tasks_run_there(setups):
    """Messages without references are plain Celery's, for any worker."""
    for native in SAID:
        app = setups.publisher(conf={"task_serializer": native})
        result = setups.task("take", app).delay("small", config={"a": [1, 2]})
        assert setups.wait(result).get() == "small"
