"""``celery offload purge``."""

from __future__ import annotations

import json
import os

import pytest
from celery import Celery
from kombu import Connection, Exchange, Queue

from offload import Offload
from tests.support.servers import redis_client

TASK = """
@app.task(name="size")
def size(value):
    return len(value)
"""
BIG = list(range(20_000))


def size(value):
    return len(value)


@pytest.fixture(params=("redis", "filesystem"))
def setup(request, project, valkey, tmp_path):
    """Return a project, an app that publishes for it, and the store, with a broker of this kind."""
    conf = {}
    broker = f"redis://{valkey.host}:{valkey.port}/5"
    if request.param == "filesystem":
        broker, folder = "filesystem://", str(tmp_path / "broker")
        (tmp_path / "broker").mkdir()
        conf["broker_transport_options"] = dict.fromkeys(
            ("data_folder_in", "data_folder_out"), folder
        ) | {"control_folder": f"{folder}/control"}
    store = f"{valkey.url}?prefix={os.urandom(4).hex()}"
    queue = f"queue-{os.urandom(4).hex()}"
    conf |= {"task_default_queue": queue, "accept_content": ["json"]}
    project.write(f"app.conf.update({conf!r})\n{TASK}", broker=broker, store=store, grace=60)
    app = Celery("proj", broker=broker, set_as_current=False)
    app.conf.update(conf)
    hook = Offload(app, store=store, grace=60)
    task = app.task(name="size", shared=False)(size)
    yield project, task, hook, queue
    app.close()


def holders(hook):
    blobs = hook.store.blobs
    return {name for info in blobs.scan() for name in blobs.holders(info.digest)}


def test_it_purges_and_releases(setup):
    """All messages are discarded with the values that only they held; values that were put, or wait
    in another queue, stay.
    """
    project, task, hook, queue = setup
    for n in range(3):
        task.delay([*BIG, n])
    task.apply_async(([1],), link=task.si([*BIG, "link"]))
    task.delay([1])
    task.apply_async((BIG,), queue="elsewhere")
    assert json.loads(project.run("purge", queue, "--force", "--json")[0]) == {
        queue: {"purged": 5, "released": 4, "without": 1}
    }
    (left,) = holders(hook)
    lives = sorted(info.ttl for info in hook.store.blobs.scan())
    assert len(lives) == 5
    assert lives[3] < 60 + 3600 + 1  # the broker's visibility timeout
    assert lives[4] > 6 * 86400
    assert task.apply_async(([1],)).id not in left
    report = project.run("purge", queue, "nothing", "-f")[0]
    assert f"Purged 1 message from {queue}." in report
    assert "Purged 0 messages from nothing." in report


def test_purge_prompts(setup):
    """Without --force the command prompts, and without an answer nothing is discarded."""
    project, task, hook, queue = setup
    task.delay(BIG)
    report, _ = project.run("purge", queue, code=1)
    assert "There is no undo for this operation!" in report
    assert holders(hook)
    assert project.run("purge", queue, "--json", code=2)
    assert "Purged 1 message" in project.run("purge", queue, "--force")[0]
    assert not holders(hook)


def test_copies_and_unreadable_messages_keep_their_values(project, valkey):
    """A message that another queue may have a copy of keeps its values; one of another serializer
    or protocol, or an invalid one, is discarded as by Celery.
    """
    broker = f"redis://{valkey.host}:{valkey.port}/6"
    store = f"{valkey.url}?prefix={os.urandom(4).hex()}"
    project.write(
        "from kombu import Exchange, Queue\n"
        "app.conf.task_queues = [Queue('own', Exchange('both', 'direct'), 'key')]\n" + TASK,
        broker=broker,
        store=store,
    )
    app = Celery("proj", broker=broker, set_as_current=False)
    hook = Offload(app, store=store)
    task = app.task(name="size", shared=False)(size)
    with Connection(broker) as connection:
        channel = connection.default_channel
        for name in ("own", "audit"):
            Queue(name, Exchange("both", "direct"), "key")(channel).declare()
        task.apply_async((BIG,), exchange="both", routing_key="key")
        for body, kind in (({"id": "x", "task": "y"}, "json"), ([[BIG], {}, {}], "pickle")):
            producer = connection.Producer(routing_key="own", serializer=kind)
            producer.publish(body)
    with redis_client(valkey, db=6) as client:
        client.lpush("own", "text", "{}", "[]", '{"body": "x", "properties": {}}')
    assert project.json("purge", "own", "--force") == {
        "own": {"purged": 7, "shared": 1, "unreadable": 6}
    }
    assert holders(hook)
    app.close()
