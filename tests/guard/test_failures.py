"""Hooks and error reports after a task has failed."""

from __future__ import annotations

import importlib.util
import json

import celery
import pytest
import redis
from celery import Task
from kombu.serialization import dumps, loads

from offload import InvalidRef, LostValue
from offload.errors import BlobMissing
from tests.support.processes import wait_until
from tests.support.wire import make_wire

BIG = "b" * 60_000

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(180)]


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


def noted(bench, where):
    wait_until(lambda: bench.app.raw.exists(where), where, 60)
    return json.loads(bench.app.raw.lindex(where, 0))


class TestHooks:
    @pytest.fixture(scope="class", autouse=True)
    def working(self, bench):
        with bench.worker("-c", "1", name="hooks") as process:
            yield process

    @pytest.mark.parametrize("name", ("hooked", "hooked_slow"))
    def test_hooks_get_values(self, bench, name):
        """Failure hooks and error callbacks receive values, in a child and, after a hard time
        limit, in the main process. There, Celery calls the task's own hooks from 5.7 on.
        """
        task = bench.app.tasks[name]
        link = bench.app.tasks["errback"].s()
        result = task.apply_async((BIG,), {"other": [BIG]}, time_limit=2, link_error=link)
        if name == "hooked" or celery.VERSION >= (5, 7):
            assert noted(bench, f"on_failure:{result.id}") == [[BIG], {"other": [BIG]}, True]
            assert noted(bench, f"after_return:{result.id}") == [[BIG], {"other": [BIG]}]
        assert noted(bench, f"errback:{result.id}") == [[BIG], {"other": [BIG]}]

    def test_hooks_after_a_lost_value(self, bench):
        """For a lost value, hooks receive a placeholder that survives JSON; other values stay."""
        kept = BIG + "kept"
        result = bench.app.tasks["hooked"].apply_async(
            (BIG + "lost",), {"other": kept}, link_error=bench.app.tasks["errback"].s(), countdown=2
        )
        bench.lose(BIG + "lost")
        for where in ("on_failure", "after_return", "errback"):
            (lost,), others, *_ = noted(bench, f"{where}:{result.id}")
            assert lost.startswith("<offload: lost str 60.0 kB b3:")
            assert lost.endswith(": BlobMissing>")
            assert others == {"other": kept}
        assert isinstance(bench.wait(result).result, BlobMissing)

    @pytest.mark.parametrize(
        ("name", "lose"),
        (
            pytest.param("once", True, marks=needs("celery_once")),
            pytest.param("once", False, marks=needs("celery_once")),
            pytest.param("single", True, marks=needs("celery_singleton")),
            pytest.param("single_by_all", False, marks=needs("celery_singleton")),
        ),
    )
    def test_locks_are_released(self, bench, name, lose):
        """Locks of celery-once and celery-singleton are released after a failure, also after a lost
        value that isn't part of their key.
        """
        rows = f"{BIG}{name}{lose}"
        result = bench.app.tasks[name].apply_async((f"{name}{lose}", rows), countdown=1)
        if lose:
            bench.lose(rows)
        bench.wait(result)
        assert isinstance(result.result, BlobMissing if lose else KeyError)
        with redis.Redis.from_url(f"{bench.url}/4") as locks:  # released after the result is stored
            wait_until(lambda: not locks.keys(), "the lock is released", 30)


@needs("sentry_sdk")
@pytest.mark.parametrize("when", ("celeryd_init", "before"))
def test_sentry(bench, when):
    """Sentry reports errors of tasks and of offload, whether it was set up before or after offload;
    a task's error has the frames that it has in plain Celery, so none repeats the arguments.
    """
    with bench.worker("-c", "1", name=f"plain-{when}", sentry=when, offload=None):
        failed = bench.publisher(offload=None).tasks["fail"].delay(BIG)
        plain = sent_to_sentry(bench, failed)["KeyError"]
    with bench.worker("-c", "1", name=f"sentry-{when}", sentry=when):
        lost = bench.app.tasks["size"].apply_async((BIG + when,), countdown=2)
        bench.lose(BIG + when)
        failed = bench.app.tasks["fail"].delay(BIG)
        events = sent_to_sentry(bench, lost, failed)
    assert set(events) >= {"BlobMissing", "KeyError"}
    assert frames_of(events["KeyError"]) == frames_of(plain)
    assert "offload/hooks" not in failed.traceback


def sent_to_sentry(bench, *results):
    """Return what Sentry was sent for these failed tasks, by the type of the error."""
    for result in results:
        bench.wait(result)
    wait_until(lambda: bench.app.raw.llen("events") >= len(results), "the events", 60)
    events = [json.loads(raw) for raw in bench.app.raw.lrange("events", 0, -1)]
    bench.app.raw.delete("events")
    return {event["exception"]["values"][-1]["type"]: event for event in events}


def frames_of(event):
    frames = event["exception"]["values"][-1]["stacktrace"]["frames"]
    return [(frame["module"], frame["function"], sorted(frame["vars"])) for frame in frames]


@pytest.mark.parametrize("native", ("json", "pickle", "msgpack"))
def test_hooks_after_a_malformed_note(native):
    """If a message's note is malformed, hooks receive placeholders for its references, and no text
    that could be taken for data.
    """
    wire = make_wire(conf={"task_serializer": native, "accept_content": [native]})
    seen = []

    class Hooked(Task):
        def on_failure(self, exc, task_id, args, kwargs, einfo):
            seen.extend([exc, args, kwargs])

    @wire.app.task(name="hooked", base=Hooked, shared=False)
    def hooked(value, other=None):
        raise AssertionError

    hooked.delay(["x" * 5000], other={"a": "y" * 5000})
    message = wire.take()
    kind = message.content_type
    args, kwargs, embed = loads(message.body, kind, message.content_encoding, accept={kind})
    embed["offload"]["refs"] = 5
    message.body = dumps((args, kwargs, embed), native)[2]
    wire.execute(message)
    error, args, kwargs = seen
    assert isinstance(error, InvalidRef)
    found = [*args, *(value for key, value in kwargs.items() if key == "other")]
    assert [type(value) for value in found] == [LostValue, LostValue]
    assert "&m=" not in json.dumps(found)
