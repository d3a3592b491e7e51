"""``celery offload check``: a value goes through broker, store, and a worker, and back."""

from __future__ import annotations

import json

import pytest

from tests.support import processes
from tests.support.servers import redis_client

pytestmark = [pytest.mark.integration, pytest.mark.server]

PATIENT = ("check", "--timeout", "60")


@pytest.fixture
def started(project, redis, tmp_path):
    """Return a function that starts a worker of the project with a result backend."""
    workers = []

    def start(backend, **settings):
        with redis_client(redis) as client:
            client.flushall()
        backend = {"redis": redis.url, "none": "disabled://"}.get(backend, backend)
        broker = f"redis://{redis.host}:{redis.port}/1"
        project.write(
            f"app.conf.result_backend = {backend!r}\n",
            broker=broker,
            **{"store": redis.url, "cache": "off", **settings},
        )
        workers.append(
            processes.start_worker(
                "proj", "-P", "solo", folder=tmp_path, env=project.environment, cwd=tmp_path
            )
        )
        return workers[0]

    yield start
    for each in workers:
        each.stop()


@pytest.mark.parametrize("backend", ("redis", "rpc://", "none"))
def test_a_value_comes_back_with_every_result_backend(started, project, redis, backend):
    """The value goes through the store, not through broker or backend, even without a backend."""
    worker = started(backend)
    out, _ = project.run(*PATIENT)
    published, sent, ran, back, total = out.splitlines()
    assert published == f"ok       {redis.url}: 1.0 MB uploaded"
    assert sent.startswith(f"ok       redis://{redis.host}:{redis.port}/1: 1.")
    assert " kB sent, " in sent
    assert ran.startswith("ok       workers: celery@")
    assert back.startswith("ok       result: 1.0 MB came back through the store, read in ")
    assert total.startswith("1.0 MB went to a worker and back in ")
    assert len(worker.log()) < 10_000  # it doesn't show the value
    found = project.json(*PATIENT, "--size", "100k")
    assert (found["size"], found["errors"], found["warnings"]) == (100_000, 0, 0)
    assert 0 < found["message"] < 3000
    assert found["uploaded"] >= 100_000
    assert found["fetched"] >= 100_000
    assert found["total"] == pytest.approx(found["publish"] + found["wait"] + found["read"])
    assert found["worker"].startswith("celery@")


def test_without_a_worker_it_says_how_to_start_one(project, redis):
    """If no worker replies, the exit code is 69, and the remedy is a command."""
    project.write(broker=f"redis://{redis.host}:{redis.port}/2", store=redis.url, cache="off")
    out, _ = project.run("check", "--timeout", "0.2", code=69)
    assert "error    workers: no worker ran the task within 0.2 s" in out
    assert "         -> start one: celery -A proj worker\n" in out
    assert out.endswith("1 error, 0 warnings\n")


def test_workers_that_differ_are_named(started, project, redis):
    """A worker with another store fails the task, and the difference is among the findings."""
    started("redis")
    project.write(
        f"app.conf.result_backend = {redis.url!r}\n",
        broker=f"redis://{redis.host}:{redis.port}/1",
        store=f"redis://{redis.host}:{redis.port}/3",
        cache="off",
    )
    for _ in range(5):  # a busy worker may not say in time which settings it has
        found = project.json(*PATIENT, code=1)
        errors = [each for each in found["findings"] if each["level"] == "error"]
        first = errors[0]["what"]
        assert first.startswith("task 'offload.check', value: a reference has no valid sig")
        if errors[1:]:
            break
    assert "offload_store" in json.dumps(errors[1:])


def test_another_result_backend_is_recognized(started, project, redis):
    """If a worker ran the task, but its result went elsewhere, the error says so."""
    started("cache+memory://")
    for timeout in ("1", "10", "60"):  # the first suffices unless the machine is very busy
        found = project.json("check", "--timeout", timeout, code=None)
        error = next(each for each in found["findings"] if each["level"] == "error")
        if "ran the task" in error["what"]:
            break
    assert error["what"].endswith(f"ran the task, but its result didn't arrive within {timeout} s")
    assert error["remedy"].startswith(
        "set result_backend to the same URL in workers and publishers"
    )


@pytest.mark.parametrize(
    ("more", "settings", "says"),
    (
        ("", {"mode": "observe"}, "settings: offload_mode is 'observe', so nothing is stored"),
        ("app.conf.task_always_eager = True\n", {}, "settings: task_always_eager is on"),
        ("", {}, "settings: the broker is in this process's memory"),
    ),
)
def test_what_cannot_be_checked(project, tmp_path, more, settings, says):
    """If no value would reach a worker, the command says so and sends nothing."""
    project.write(more, store=f"file://{tmp_path}/store", **settings)
    assert f"error    {says}" in project.run("check", code=1)[0]


def test_an_unavailable_broker_or_store(project, redis):
    """If the broker or the store is unavailable, the exit code is 69, and the error names it."""
    project.write(broker="redis://127.0.0.1:1/0", store=redis.url, cache="off")
    out, _ = project.run("check", code=69)
    assert "error    broker: the message can't be sent to the broker" in out
    assert "-> start the broker, or correct broker_url" in out
    broker = f"redis://{redis.host}:{redis.port}/2"
    project.write(broker=broker, store="redis://127.0.0.1:1/0", retry={"max_retries": 0})
    out, _ = project.run("check", code=69)
    assert "redis://127.0.0.1:1/0 is unavailable" in out
    assert "-> start the store's server, or correct offload_store" in out
