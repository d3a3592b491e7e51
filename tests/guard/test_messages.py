"""Messages that offload didn't write fail their task without stopping the worker."""

from __future__ import annotations

import base64
import json
import uuid

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from offload.errors import InvalidRef
from offload.hooks.message import STAND_IN
from tests.guard.guard_app import SERIALIZERS
from tests.support.processes import wait_until

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(180)]

EXPIRED = "2020-01-01T00:00:00+00:00"
FINAL = ("SUCCESS", "FAILURE", "REVOKED")
POOLS = ("prefork", "solo")

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(allow_nan=False), st.text(max_size=4)
)
junk = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip
steps = st.one_of(
    st.sampled_from(["args", "kwargs", "chain", "errbacks", "options", "value"]),
    st.integers(-2, 9), junk,
)  # fmt: skip
paths = st.lists(st.lists(steps, max_size=5) | junk, max_size=3) | junk
wires = st.sampled_from(
    ["", "x", "offload:1?n=1&m=" + "0" * 32, "offload:9?d=1&m=" + "f" * 32, 5, None, ["x"]]
)
references = st.builds(lambda text: {"__type__": "offload", "__value__": text}, wires)
options = ("threshold", "inline", "retention", "memo", "wait", "save_as", "x")
notes = st.one_of(
    junk,
    st.fixed_dictionaries(
        {"v": st.sampled_from([1, 1, 2, 3, 4, 99, "1", None, True, 1.0])},
        optional={
            "refs": paths, "keep": paths, "also": st.lists(wires, max_size=2) | junk,
            "within": paths, "k": st.just("0" * 8) | junk, "mark": st.just("m") | junk,
            "holds": st.text(max_size=3) | junk, "attempt": st.integers(-2, 3) | junk,
            "waits": st.integers(-2, 3) | junk, "until": st.integers() | junk,
            "since": st.integers() | junk, "errbacks": junk,
            "call": st.dictionaries(st.sampled_from(options), junk) | junk,
        },
    ),
)  # fmt: skip
signatures = st.builds(
    lambda arg, name: {"task": name, "args": [arg], "kwargs": {}, "options": {},
                       "subtask_type": None, "immutable": True},
    references | junk, st.sampled_from(["size", "nowhere"]),
)  # fmt: skip
embeds = st.fixed_dictionaries(
    {"offload": notes},
    optional={
        "errbacks": st.none() | st.lists(signatures | st.just("anything"), max_size=2) | junk,
        "callbacks": st.none() | junk, "chain": st.none() | st.lists(signatures, max_size=2) | junk,
        "chord": st.none() | signatures | junk,
    },
)  # fmt: skip
messages = st.tuples(
    st.lists(references | junk, max_size=3),
    st.dictionaries(st.sampled_from(["value", "other", "__offload__"]), references | junk) | junk,
    embeds,
    st.fixed_dictionaries(
        {},
        optional={
            "expires": st.just(EXPIRED),
            "timelimit": junk,
            "task": st.just(STAND_IN),
            "offload": st.fixed_dictionaries({"task": st.just("anything") | junk}) | junk,
        },
    ),
)


def send(bench, body, headers, task="anything"):
    task_id = str(uuid.uuid4())
    message = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": task, "id": task_id, "root_id": task_id, "retries": 0,
                    "argsrepr": "()", "kwargsrepr": "{}", **headers},
        "properties": {"correlation_id": task_id, "delivery_mode": 2, "priority": 0,
                       "delivery_info": {"exchange": "", "routing_key": "celery"},
                       "body_encoding": "base64", "delivery_tag": task_id},
    }  # fmt: skip
    bench.client.lpush("celery", json.dumps(message))
    return bench.app.AsyncResult(task_id)


@pytest.fixture(scope="class", params=POOLS)
def working(request, bench):
    with bench.worker("-P", request.param, "-c", "1", name=request.param) as process:
        yield process


def alive(bench, process):
    """Wait until the worker has received all messages and runs a task."""
    result = bench.app.tasks["anything"].delay(1)
    wait_until(lambda: result.ready() or process.ended, "the worker is alive", 60)
    assert not process.ended, process.log()[-5000:]
    assert "Unrecoverable error" not in process.log()


MALFORMED = [
    5, "x", [], {}, {"v": "1"}, {"v": True}, {"v": 1, "refs": 5}, {"v": 1, "refs": {"a": 1}},
    {"v": 1, "refs": [5]}, {"v": 1, "refs": [[]]}, {"v": 1, "refs": [["args"]]},
    {"v": 1, "refs": [["args", -9]]}, {"v": 1, "refs": [["args", -1, 0]]},
    {"v": 1, "refs": [["args", 7]]}, {"v": 1, "refs": [["args", 0, "deeper"]]},
    {"v": 1, "refs": [["chain", 0]]}, {"v": 1, "refs": [["args", [0]]]},
    {"v": 1, "keep": [["nowhere", 0]]}, {"v": 1, "keep": None}, {"v": 1, "also": [5]},
    {"v": 1, "also": 5}, {"v": 1, "attempt": "2"}, {"v": 1, "attempt": -1}, {"v": 1, "holds": 1},
    {"v": 1, "call": 5}, {"v": 1, "call": {"unknown": 1}}, {"v": 99},
    {"v": 1, "refs": [["args"] + [0] * 5000]},
]  # fmt: skip


class TestEveryMessage:
    @settings(
        max_examples=6, deadline=None, phases=[Phase.generate], derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(batch=st.lists(messages, min_size=25, max_size=25))
    def test_no_message_stops_a_worker(self, bench, working, batch):
        """Nothing in a message's header, embed, or other headers stops the worker."""
        for args, kwargs, embed, headers in batch:
            send(bench, [args, kwargs, embed], headers)
        alive(bench, working)

    def test_a_malformed_header_is_an_invalid_reference(self, bench, working):
        """A task whose message has a malformed header fails with InvalidRef without starting; an
        expired one is revoked.
        """
        for headers, state in (({}, "FAILURE"), ({"expires": EXPIRED}, "REVOKED")):
            sent = [send(bench, [[1], {}, {"offload": note}], headers) for note in MALFORMED]
            alive(bench, working)
            for note, result in zip(MALFORMED, sent, strict=True):
                bench.wait(result)
                assert result.state == state, note
                assert bench.entered(result) == [], note
                if state == "FAILURE":
                    assert isinstance(result.result, InvalidRef), (note, result.result)

    def test_fields_of_the_message_in_its_embed(self, bench, working):
        """An embed that would replace the message's own fields stops no worker."""
        note = {"v": 1, "refs": [], "holds": "x", "also": ["offload:1?n=1&m=" + "0" * 32]}
        for field in ("task", "id", "delivery_info"):
            for headers in ({}, {"expires": EXPIRED}):
                send(bench, [[1], {}, {"offload": note, field: ["x"]}], headers)
        alive(bench, working)

    @pytest.mark.parametrize("name", (STAND_IN, "nowhere", "", 5, None))
    def test_a_stand_in_for_no_task(self, bench, working, name):
        """A message that says it is for the stand-in itself, or for no task, stops no worker."""
        note = {"v": 2, "refs": []}
        send(bench, [[1], {}, {"offload": note}], {"offload": {"task": name}}, task=STAND_IN)
        alive(bench, working)

    def test_a_value_for_the_stand_in(self, bench, working):
        """A large value that is sent to Celery's own task fails it, as in plain Celery."""
        result = bench.app.send_task(STAND_IN, ("b" * 60_000,))
        alive(bench, working)
        assert isinstance(bench.wait(result).result, TypeError)


def test_a_restarted_pool_gets_values(bench):
    """After ``pool_restart``, for which Celery asks tasks for their strategies again, messages with
    references are dispatched as before.
    """
    with bench.worker("-c", "1", name="restart", conf={"worker_pool_restarts": True}) as process:
        size = bench.app.tasks["size"]
        assert bench.wait(size.delay("b" * 60_000)).get() == 60_000
        bench.app.control.pool_restart(destination=["restart@h"], reply=True, timeout=10)
        assert bench.wait(size.delay("b" * 60_000)).get() == 60_000
        alive(bench, process)


def test_a_malformed_header_of_a_task_over_its_time_limit(bench):
    """A malformed header doesn't stop the worker if its main process ends the task either."""
    with bench.worker("-c", "1", name="hard") as process:
        for note in ({"v": 1, "also": [5]}, {"v": 1, "refs": 5}, {"v": 1, "refs": []}):
            send(bench, [[1], {}, {"offload": note}], {"timelimit": [0.5, None]}, task="slow")
        alive(bench, process)


@pytest.mark.parametrize("native", SERIALIZERS)
def test_inspect_shows_no_usable_reference(bench, native):
    """``inspect`` shows type and size of a task's references but not their signatures, in every
    serializer.
    """
    slow = bench.app.tasks["slow"]
    with bench.worker("-P", "threads", "-c", "1", "-O", "fair", name=native) as process:
        running = slow.apply_async(("i" * 60_000,), {"other": ["i" * 50_000]}, serializer=native)
        later = slow.apply_async(("l" * 60_000,), serializer=native, countdown=3600)
        wait_until(lambda: bench.entered(running), "the task runs", 60)
        control = bench.app.control.inspect([f"{native}@h"], timeout=30, limit=1)
        wait_until(lambda: any((control.scheduled() or {}).values()), "the other is scheduled", 60)
        report = [control.active(), control.scheduled(), control.query_task([running.id, later.id])]
        signature = bench.app.hook.put("i" * 60_000).wire.partition("&m=")[2]
    for answer in report:
        text = json.dumps(answer)
        assert "<Ref str 60.0 kB" in text
        assert "&m=" not in text
        assert signature not in text
    assert signature not in process.log()
