"""What offload costs its store, counted by the server and by both processes."""

from __future__ import annotations

import sys
import threading
import uuid

import pytest
from celery import chain, chord, group
from celery.result import AsyncResult

from tests.integration.features import create
from tests.support.processes import Process, environment, wait_until, worker
from tests.support.servers import redis_client

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

SIZE = 50_000  # items of a large list
TIMEOUT = 30


@pytest.fixture(scope="module")
def config(broker_server, store_server):
    for server in (broker_server, store_server):
        with redis_client(server) as client:
            client.flushall()
    base = f"redis://{broker_server.host}:{broker_server.port}"
    return {
        "broker": f"{base}/0",
        "backend": f"{base}/1",
        "offload": {"store": store_server.url},
    }


@pytest.fixture(scope="module")
def app(config, tmp_path_factory):
    """Return the publisher's app, which has a worker with two threads."""
    folder = tmp_path_factory.mktemp("cost")
    with worker(folder, config, pool="threads", app="tests.integration.features", args=("-E",)):
        app = create(config)
        # Both processes know the store's key from here on, and are connected.
        app.tasks["same"].delay([0] * SIZE).get(timeout=TIMEOUT)
        yield app
        app.close()


@pytest.fixture
def commands(app, store_server):
    """Return how often the server ran each command since the last call."""

    def counts():
        with redis_client(store_server) as client:
            found = {
                name.removeprefix("cmdstat_"): stat["calls"]
                for name, stat in client.info("commandstats").items()
            }
            client.config_resetstat()
        ignored = (
            "info",
            "config|resetstat",
            "client|setinfo",
            "client|setname",
            "hello",
            "select",
        )
        return {name: calls for name, calls in found.items() if name not in ignored}

    # The worker releases a task's holds some time after its result is stored.
    wait_until(lambda: not held_by_tasks(store_server), "all holds are released")
    counts()
    return counts


def held_by_tasks(server):
    with redis_client(server) as client:
        holds = [client.zrange(key, 0, -1) for key in client.scan_iter("*:holds:*")]
        return [name for names in holds for name in names if name.startswith(b"task:")]


@pytest.fixture
def counted(app):
    """Return the increase of both processes' counters since the test started."""

    def totals():
        there = app.tasks["counters"].delay().get(timeout=TIMEOUT)
        here = app.offload.counters.snapshot()
        return {name: here[name] + there[name] for name in here}

    before = totals()
    return lambda: {name: value - before[name] for name, value in totals().items()}


def test_small_tasks_make_no_store_call(app, commands):
    """Small arguments and results, also in a chain and a chord, make no store call."""
    same = app.tasks["same"]
    assert [same.delay(i, "text", {"a": [i]}).get(timeout=TIMEOUT) for i in range(5)] == [*range(5)]
    assert chain(same.s(1), same.s(), same.s())().get(timeout=TIMEOUT) == 1
    assert chord([same.s([i]) for i in range(3)])(app.tasks["lengths"].s()).get(
        timeout=TIMEOUT
    ) == [1, 1, 1]
    assert commands() == {}


def test_a_chain_stores_each_value_once(app, counted, commands):
    """In ``a | b | c``, every large value is serialized and uploaded once."""
    value = [1.5] * SIZE
    result = chain(*(app.tasks["same"].s() for _ in range(3))).apply_async((value,))
    wait_until(result.ready, "the chain is done")
    counts = counted()
    assert counts["blobs_uploaded"] == 1
    assert counts["values_offloaded"] == 4  # the argument, and each task's result: once each
    assert counts["values_fetched"] == 3
    assert result.get(timeout=TIMEOUT) == value


def test_a_chord_stores_each_part_once_and_gathers_nothing(app, counted, commands):
    """A chord's parts are uploaded once each and fetched by its body only."""
    parts = [app.tasks["make"].s(number, SIZE) for number in range(100, 108)]
    result = chord(parts)(app.tasks["lengths"].s())
    assert result.get(timeout=TIMEOUT) == [SIZE] * 8
    counts = counted()
    assert counts["blobs_uploaded"] == 8
    assert counts["values_offloaded"] == 8
    assert counts["values_fetched"] == 8


def test_a_chord_whose_body_wants_references_fetches_nothing(app, counted):
    """If the body takes ``list[Ref]``, no part is read."""
    parts = [app.tasks["make"].s(number, SIZE) for number in range(200, 204)]
    assert chord(parts)(app.tasks["counted"].s()).get(timeout=TIMEOUT) == 4
    counts = counted()
    assert counts["blobs_uploaded"] == 4
    assert counts["values_fetched"] == 0


def test_a_reference_costs_as_much_as_a_small_value(app, commands):
    """Publishing with a Ref makes no store call, however often it is passed."""
    ref = app.offload.put([3] * SIZE)
    commands()
    results = group(app.tasks["same"].s(0, ref) for _ in range(20))
    messages = [app.amqp.create_task_message(f"id{i}", "same", (0, ref), {}) for i in range(50)]
    assert commands() == {}
    assert len(messages) == 50
    assert results().get(timeout=TIMEOUT) == [0] * 20


def test_polling_a_state_makes_no_store_call(app, commands):
    """Polling a state uses the result backend only."""
    result = app.tasks["make"].delay(5, SIZE)
    wait_until(result.ready, "the task is done")
    commands()
    for _ in range(5):
        again = AsyncResult(result.id, app=app)
        assert again.state == "SUCCESS"
        assert again.successful()
    assert commands() == {}
    assert again.get(timeout=TIMEOUT) == [5] * SIZE
    assert commands() != {}


def test_the_same_content_is_uploaded_once(app, counted):
    """Equal values in different tasks are one blob."""
    results = [app.tasks["same"].delay(0, [7.25] * SIZE) for _ in range(5)]
    assert [result.get(timeout=TIMEOUT) for result in results] == [0] * 5
    counts = counted()
    assert counts["blobs_uploaded"] == 1
    assert counts["values_offloaded"] == 5


def test_tasks_share_no_object(app):
    """Threads of one process that get the same content don't see each other's changes."""
    value = [0] * SIZE
    results = [app.tasks["spoil"].delay(value, number) for number in range(1, 21)]
    found = [result.get(timeout=TIMEOUT) for result in results]
    assert found == [[[0], [number]] for number in range(1, 21)]


def test_inspect_shows_references_and_reads_nothing(app, commands):
    """A worker's report of its tasks has the content of their messages."""
    with redis_client_of(app) as client:
        results = [app.tasks["wait"].delay([9] * SIZE, f"go-{i}") for i in range(6)]

        def report():
            active = app.control.inspect(timeout=1).active() or {}
            return [task for tasks in active.values() for task in tasks]

        wait_until(lambda: len(report()) == 2, "two tasks run")
        commands()
        reserved = app.control.inspect(timeout=1).reserved() or {}
        waiting = [task for tasks in reserved.values() for task in tasks]
        active = report()
        assert commands() == {}
        assert waiting
        for task in (*active, *waiting):
            assert len(repr(task["args"])) < 1000
            assert "<Ref list" in repr(task["args"])
        for i in range(6):
            client.rpush(f"go-{i}", "go")
        assert [result.get(timeout=TIMEOUT) for result in results] == [SIZE] * 6


def redis_client_of(app):
    import redis

    return redis.Redis.from_url(app.conf.result_backend)


def test_events_show_references(app):
    """Events of a task with a large argument are small and contain its Ref."""
    found, task_id = [], uuid.uuid4().hex
    listening, done = threading.Event(), threading.Event()
    # The publisher sends its event after the message: a worker may be done with that by then.
    needed = {"task-sent", "task-received", "task-succeeded"}

    def on_event(event):
        listening.set()
        if event.get("uuid") == task_id:
            found.append(event)
            if needed <= {each["type"] for each in found}:
                done.set()

    def capture():
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": on_event})
            for _ in receiver.consume(limit=None, timeout=20, wakeup=False):
                if done.is_set():
                    return

    thread = threading.Thread(target=capture, daemon=True)
    thread.start()

    def heard():
        app.tasks["same"].delay(0)
        return listening.wait(0.2)

    wait_until(heard, "events arrive")
    app.tasks["same"].apply_async((1, [4] * SIZE), task_id=task_id)
    assert done.wait(20)
    thread.join(20)
    received = {event["type"]: event for event in found}
    assert "<Ref list" in received["task-sent"]["args"]
    assert "<Ref list" in received["task-received"]["args"]
    assert max(len(repr(event)) for event in found) < 3000


def test_beat_sends_references(config, tmp_path, store_server):
    """A real beat sends a schedule's large keyword argument by reference."""
    notes = config["broker"].rpartition("/")[0] + "/2"
    parity = {**config, "notes": notes, "serializer": "json", "lacking": [], "beat": True}
    parity["offload"] = {"store": store_server.url, "threshold": 1000}
    command = [sys.executable, "-m", "celery", "-A", "tests.integration.app", "beat", "-l", "INFO"]
    command += ["-s", str(tmp_path / "schedule"), "--pidfile="]
    beat = Process(command, tmp_path / "beat.log", environment(parity))
    import redis

    try:
        with (
            worker(tmp_path, parity, pool="solo", name="beaten"),
            redis.Redis.from_url(notes) as client,
        ):
            beat.wait_for(lambda: client.llen("seen:beat") >= 2, "tasks of the schedule ran", 30)
            assert b"numbers" in client.lindex("seen:beat", 0)
            assert b"tests.integration.app.remember" not in client.smembers("in_full")
    finally:
        beat.stop()
