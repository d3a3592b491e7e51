"""A task called as a function receives values in place of Refs, in any process."""

from __future__ import annotations

import os

import pytest
from celery import Celery, Task
from celery.app.trace import task_has_custom

from offload import Offload, Ref, SerializationError

ROWS = list(range(2000))


class Forwarding(Task):
    """A base class that passes its call on to Celery's own."""

    abstract = True

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


@pytest.fixture
def app():
    """Return an app that has neither published nor run a task."""
    app = Celery("direct", broker="memory://", set_as_current=False)
    app.hook = Offload(app, store=f"memory://{os.urandom(8).hex()}")

    @app.task(name="size", shared=False)
    def size(value, more=()):
        return [type(value).__name__, len(value), *map(len, more)]

    @app.task(name="forwarded", shared=False, base=Forwarding)
    def forwarded(value, more=()):
        return size.run(value, more)

    @app.task(name="wants", shared=False)
    def wants(value: Ref):
        return type(value).__name__

    class ByClass(Task):
        name = "by class"

        def run(self, value, more=()):
            return size.run(value, more)

    app.register_task(ByClass())
    yield app
    app.close()


@pytest.mark.parametrize("name", ("size", "forwarded", "by class"))
def test_a_direct_call_receives_values(app, name):
    """The first direct call of a process receives values, as do later ones, also within lists and
    by keyword.
    """
    ref = app.hook.put(ROWS)
    for _ in range(2):
        assert app.tasks[name](ref, more=[ref, "ab"]) == ["list", 2000, 2000, 2]
        assert app.tasks[name](value=ref) == ["list", 2000]


def test_a_parameter_that_asks_for_a_ref_receives_it(app):
    """A direct call passes a Ref to a parameter that is annotated with it."""
    assert app.tasks["wants"](app.hook.put(ROWS)) == "Ref"


def test_a_set_with_a_ref_is_refused(app):
    """A direct call refuses a Ref where a message can't have one."""
    with pytest.raises(SerializationError, match="task 'size', value: cannot send"):
        app.tasks["size"]({app.hook.put(ROWS)})


def test_tasks_keep_celerys_call(app):
    """A task has no ``__call__`` of its own for Celery, and one of another app stays untouched."""
    assert not task_has_custom(app.tasks["size"], "__call__")
    with Celery("plain", broker="memory://", set_as_current=False) as plain:

        @plain.task(name="double", shared=False)
        def double(number):
            return number * 2

        run = double.run
        assert double(2) == 4
        assert double.run is run
