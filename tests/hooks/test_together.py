"""Values that one group call publishes in many messages."""

from __future__ import annotations

import itertools
import uuid

import pytest
from celery import Celery, chord, group
from celery.signals import before_task_publish

from offload import Offload

VALUE = list(range(20_000))


@pytest.fixture
def app():
    app = Celery("together", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.offload = Offload(app, store=f"memory://{uuid.uuid4()}")

    @app.task(name="use", shared=False)
    def use(value, n): ...

    @app.task(name="gather", shared=False)
    def gather(parts, value): ...

    return app


@pytest.fixture
def sent():
    """The bodies of the messages sent during a test."""
    bodies = []

    def receive(body, **_):
        bodies.append(body)

    before_task_publish.connect(receive)
    yield bodies
    before_task_publish.disconnect(receive)


def serialised(app) -> int:
    counts = app.offload.counters.snapshot()
    return counts["values_offloaded"] - counts["values_remembered"]


def test_a_group_of_a_list_serialises_a_shared_value_once(app):
    """Fifty tasks over the same object look at it once and refer to it fifty times."""
    group([app.tasks["use"].s(VALUE, n) for n in range(50)]).apply_async()
    assert app.offload.counters.snapshot()["values_offloaded"] == 50
    assert serialised(app) == 1


def test_a_chords_body_is_serialised_once(app):
    """A body's large argument stands in each header task's message, and is looked at once."""
    header = [app.tasks["use"].s("small", n) for n in range(20)]
    chord(header, app.tasks["gather"].s(VALUE)).apply_async()
    assert serialised(app) == 1


def test_a_group_of_a_generator_looks_at_every_value_anew(app, sent):
    """A generator may change a buffer between two messages: each message has its own state."""
    buffer = bytearray(100_000)

    def tasks():
        for n in range(3):
            buffer[0] = n
            yield app.tasks["use"].s(buffer, n)

    group(tasks()).apply_async()
    first, second, third = (body[0][0]["__value__"].partition("&")[0] for body in sent)
    assert first != second == third  # Celery takes one task more than it publishes


def test_calls_one_after_another_look_at_a_value_anew(app):
    """Between two calls an object may change, so nothing is remembered of a mutable one."""
    for n in itertools.islice(itertools.count(), 3):
        group([app.tasks["use"].s(VALUE, n)]).apply_async()
    assert serialised(app) == 3
