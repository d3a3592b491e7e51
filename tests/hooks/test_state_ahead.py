"""Celery's Redis backend reads a task's state while the task's values are on their way."""

from __future__ import annotations

import gc
import os

import pytest
from celery import states
from celery.backends.redis import RedisBackend
from redis.exceptions import ConnectionError as RedisConnectionError

from offload.hooks import state_ahead
from offload.stores.redis.redis_internals import send
from tests.support.processes import wait_until
from tests.support.wire import make_wire

pytestmark = pytest.mark.server

SMALL = 100_000  # bytes


class Questions:
    """The states that Celery reads itself, and those that are answered when the store is asked."""

    def __init__(self, wire):
        self.asked = []
        self.answered = []
        self.backend = wire.app.backend
        self.client = self.backend.client
        self._execute = self.client.execute_command
        self._sent = wire.hook.store.client._sent
        self._before = self.count()
        self.backend.client.execute_command = self.execute
        wire.hook.store.client._sent = self.send

    def count(self):
        """Return how many GETs the server has executed."""
        return self._execute("INFO", "commandstats").get("cmdstat_get", {"calls": 0})["calls"]

    def execute(self, *command, **options):
        if command[0] == "GET":
            self.asked.append(command[1])
        return self._execute(*command, **options)

    def send(self, commands):
        wait_until(lambda: self.count() > self._before, "the state is asked for")
        self.answered.append([command[0] for command in commands])
        return self._sent(commands)


@pytest.fixture
def wire(redis, monkeypatch):
    """Return an app whose store and results are in Redis. Answers stay fresh, and are awaited."""
    monkeypatch.setattr(state_ahead, "_FRESH", 3600.0)
    monkeypatch.setattr(state_ahead, "_PATIENCE", 30.0)
    wire = make_wire(
        store=f"{redis.url}?prefix=ahead{os.urandom(4).hex()}",
        watch=False,
        secret="not a secret at all",
        stats_interval=0,
        conf={"result_backend": redis.url},
    )

    @wire.app.task(name="size", shared=False)
    def size(value):
        return len(value)

    @wire.app.task(name="make", shared=False)
    def make(number):
        return text(number)

    @wire.app.task(name="report", bind=True, shared=False)
    def report(self, value):
        self.update_state(state="PROGRESS", meta={"done": 1})
        return len(value)

    @wire.app.task(name="fail", shared=False)
    def fail(value):
        raise KeyError(len(value))

    wire.run(size, text(SMALL))  # connections are open, and the server knows the scripts
    yield wire
    gc.collect()  # results unsubscribe when they are collected
    wire.app.backend.result_consumer.stop()
    wire.hook.store.close()


def text(size):
    return os.urandom(size // 2).hex()


def execute(wire, name, argument):
    """Execute one task, and return what Celery asked the backend for meanwhile."""
    result = wire.app.tasks[name].delay(argument)
    message = wire.take()
    questions = Questions(wire)
    try:
        wire.execute(message)
    finally:
        del questions.client.execute_command
        wire.hook.store.client._sent = questions._sent
    return result, questions


def test_the_state_is_read_while_an_argument_arrives(wire):
    """Celery stores a task's result without a round trip of its own to read the task's state."""
    result, questions = execute(wire, "size", text(SMALL))
    assert (questions.asked, questions.answered[0]) == ([], ["GETRANGE"])
    assert result.get(timeout=10) == SMALL


def test_the_state_is_read_while_a_result_is_stored(wire):
    """A large result is stored while the backend reads the state that Celery asks for."""
    result, questions = execute(wire, "make", SMALL)
    assert (questions.asked, questions.answered[0]) == ([], ["SET", "EVALSHA"])
    assert len(result.get(timeout=10)) == SMALL


def test_a_failure_is_stored_with_it_too(wire):
    """A task that fails needs no round trip more for its state than one that succeeds."""
    result, questions = execute(wire, "fail", text(SMALL))
    assert questions.asked == []
    with pytest.raises(KeyError, match=str(SMALL)):
        result.get(timeout=10)


def test_an_answer_is_used_once(wire):
    """A second state of the same task is stored after the backend was asked again."""
    result, questions = execute(wire, "report", text(SMALL))
    assert len(questions.asked) == 1
    assert result.get(timeout=10) == SMALL


def test_an_old_answer_is_not_used(wire, monkeypatch):
    """After a quarter of a second, Celery asks for the state itself."""
    monkeypatch.setattr(state_ahead, "_FRESH", 0.0)
    result, questions = execute(wire, "size", text(SMALL))
    assert len(questions.asked) == 1
    assert result.get(timeout=10) == SMALL


def test_a_success_is_kept(wire):
    """A message that is delivered again doesn't replace the result of the first delivery."""
    result = wire.app.tasks["make"].delay(SMALL)
    message = wire.take()
    wire.execute(message)
    first = result.get(timeout=10)
    wire.execute(message)  # makes another text
    assert wire.app.AsyncResult(result.id).get(timeout=10) == first


def test_a_backend_that_does_not_answer_is_asked_by_celery(wire, monkeypatch):
    """If the state can't be read ahead, Celery asks itself, and it isn't tried for ten seconds."""
    tried = []

    def refuse(pool, commands):
        if commands[0][0] == "GET":
            tried.append(1)
            raise RedisConnectionError
        return send(pool, commands)

    monkeypatch.setattr("offload.stores.redis.redis_internals.send", refuse)
    monkeypatch.setattr("offload.hooks.state_ahead._PAUSE", 3600.0)
    monkeypatch.setattr(Questions, "send", lambda self, commands: self._sent(commands))
    for _ in range(2):
        result, questions = execute(wire, "size", text(SMALL))
        assert len(questions.asked) == 1
        assert result.get(timeout=10) == SMALL
    assert tried == [1]


def test_a_late_answer_is_dropped(wire, monkeypatch):
    """An answer that doesn't arrive with the values isn't taken for another command's."""
    monkeypatch.setattr(Questions, "send", lambda self, commands: self._sent(commands))
    wire.app.backend.client.execute_command("CLIENT", "PAUSE", 300, "ALL")
    monkeypatch.setattr(state_ahead, "_PATIENCE", 0.0)
    with (
        pytest.raises(ZeroDivisionError),
        state_ahead.asked_ahead(
            wire.app.backend, "some", lambda ahead: ahead and pytest.fail("there was no answer")
        ),
    ):
        raise ZeroDivisionError
    result, questions = execute(wire, "size", text(SMALL))
    assert len(questions.asked) == 1
    assert result.get(timeout=30) == SMALL


def test_a_backend_that_reads_in_its_own_way_is_left_alone(wire):
    """A subclass with another ``get``, and a pool with few connections, aren't asked ahead."""

    class Own(RedisBackend):
        def get(self, key):
            return super().get(key)

    taken = []
    for backend in (
        Own(app=wire.app, url=wire.app.backend.url),
        RedisBackend(app=wire.app, url=wire.app.backend.url, max_connections=1),
    ):
        backend.store_result("some", 1, states.SUCCESS)
        with state_ahead.asked_ahead(backend, "some", taken.append):
            pass
        backend.result_consumer.stop()
    assert taken == [None, None]
    with state_ahead.asked_ahead(wire.app.backend, "some", taken.append):
        pass
    assert taken[-1] is not None
