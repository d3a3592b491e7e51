"""What reading a result costs, and what it does not."""

from __future__ import annotations

import uuid

import pytest
from celery import Celery, states
from celery.result import AsyncResult

from offload import Offload

VALUE = list(range(20_000))


@pytest.fixture
def app():
    app = Celery("results", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.offload = Offload(app, store=f"memory://{uuid.uuid4()}")
    return app


def stored(app) -> str:
    """Return the id of a task whose large result is stored."""
    ref = app.offload.put(VALUE)
    task_id = str(uuid.uuid4())
    meta = {
        "status": states.SUCCESS,
        "result": ref.__json__(),
        "traceback": None,
        "children": [],
        "task_id": task_id,
    }
    backend = app.backend
    backend.set(backend.get_key_for_task(task_id), backend.encode(meta))
    return task_id


def fetched(app) -> int:
    return app.offload.counters.snapshot()["values_fetched"]


def test_a_chains_result_does_not_fetch_what_came_before_it(app):
    """get() asks the parents whether they failed, and leaves their values where they are."""
    parent = app.AsyncResult(stored(app))
    result = app.AsyncResult(stored(app), parent=parent)
    assert result.get(timeout=5) == VALUE
    assert fetched(app) == 1


def test_the_state_is_known_without_the_value(app):
    """Polling a state fetches nothing, however the result object was made."""
    result = AsyncResult(stored(app), app=app)
    assert result.state == states.SUCCESS
    assert result.ready()
    assert result.successful()
    assert fetched(app) == 0


def test_a_value_is_fetched_once_for_one_result_object(app):
    """As with plain Celery, one result object gives one value object."""
    result = AsyncResult(stored(app), app=app)
    assert result.get(timeout=5) is result.result
    assert fetched(app) == 1
