"""Workers without the library fail tasks with a reason, and never run them on a reference."""

from __future__ import annotations

import celery
import pytest
from celery import chain, chord
from celery.result import GroupResult

from tests.guard.guard_app import SERIALIZERS
from tests.support.processes import wait_until

BIG = "b" * 60_000

since_celery_5_7 = pytest.mark.skipif(
    celery.VERSION < (5, 7), reason="the rpc backend makes its metadata by itself before Celery 5.7"
)

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", autouse=True)
def without(bench):
    with bench.worker("-P", "solo", name="without", offload=None, block=True) as process:
        yield process


@pytest.mark.parametrize("native", SERIALIZERS)
@pytest.mark.parametrize("name", ("size", "anything", "hooked"))
def test_a_task_with_a_reference_fails(bench, name, native):
    """The task fails with an error that names offload, its error callback runs, and its function
    doesn't, whatever its parameters and serializer.
    """
    link = None if native == "yaml" else bench.app.tasks["errback"].s()  # YAML writes none
    result = bench.app.tasks[name].apply_async(
        (BIG,), {"other": 1}, serializer=native, link_error=link
    )
    bench.wait(result)
    assert result.state == "FAILURE"
    assert isinstance(result.result, TypeError)
    assert "install offload on this worker" in str(result.result)
    if link is not None:
        wait_until(lambda: bench.app.raw.exists(f"errback:{result.id}"), "the callback ran", 30)
    assert bench.entered(result) == []
    assert not bench.app.raw.exists(f"on_failure:{result.id}")


@pytest.mark.parametrize("native", ("json", "msgpack", "pickle"))
def test_a_callback_with_a_reference_is_not_called(bench, native):
    """An error callback whose own argument is a reference isn't called."""
    callback = bench.app.tasks["anything"].si(BIG).set(task_id=f"callback-{native}")
    result = bench.app.tasks["fail"].apply_async((1,), serializer=native, link_error=callback)
    probe = bench.app.tasks["anything"].delay("small")
    bench.wait(probe)
    bench.wait(result)
    assert "install offload on this worker" in str(result.result)
    assert not bench.app.raw.exists(f"entered:callback-{native}")


CARRIERS = {
    "callback": lambda step: step(1).set(link=[step(BIG)]),
    "chain": lambda step: chain(step(1), step([BIG, {"deep": BIG}])),
    "chord": lambda step: chord([step(1), step(2)], step(BIG)),
    "argument": lambda step: step([step(BIG)]),
    "nested chain": lambda step: chain(step(1), step(step(BIG)), chain(step(2), step(BIG))),
}


@pytest.mark.parametrize("native", ("json", "msgpack", "pickle"))
@pytest.mark.parametrize("kind", CARRIERS)
def test_a_message_that_carries_references_fails(bench, kind, native):
    """Wherever a message has its references, its task fails with an error that names offload and
    runs its error callbacks.
    """
    signature = CARRIERS[kind](bench.app.tasks["anything"].si)
    errback = bench.app.tasks["errback"].s()
    options = {"link_error": errback}
    if kind == "chord" and celery.VERSION < (5, 7):  # its parts refused the option
        signature.link_error(options.pop("link_error"))
    result = signature.apply_async(serializer=native, **options)
    names = [result.id]
    while result.parent is not None:
        result = result.parent
    parts = result.results if isinstance(result, GroupResult) else [result]
    for each in parts:
        bench.wait(each)
        assert each.state == "FAILURE"
        assert "install offload on this worker" in str(each.result)
        assert bench.entered(each) == []
    names += [each.id for each in parts]
    wait_until(lambda: any(bench.app.raw.exists(f"errback:{name}") for name in names), "it ran", 30)


@pytest.mark.parametrize("native", SERIALIZERS)
def test_small_messages_are_plain(bench, native):
    """Messages without references run."""
    result = bench.app.tasks["anything"].apply_async(("small",), {"a": 1}, serializer=native)
    assert bench.wait(result).get() == 2


READER = """
import json
from guard_app import app

big = app.tasks["big"]
small = [big.delay(n) for n in (1, 2)]
large = big.delay(60_000)
seen = [small[0].get(timeout=60), small[1].get(timeout=60)]
try:
    seen.append(large.get(timeout=60))
except Exception as exc:
    seen.append([type(exc).__name__, str(exc)])
seen.append(big.delay(3).get(timeout=60))
print(json.dumps([large.state, seen]))
"""


@pytest.mark.parametrize(
    ("native", "backend"),
    (
        *((native, "redis") for native in SERIALIZERS),
        pytest.param("json", "rpc", marks=since_celery_5_7),
    ),
)
def test_a_reader_gets_one_clear_error(bench, native, backend):
    """A process without the library gets one error for a result by reference, and other results as
    usual; one with the library gets the value.
    """
    conf = {"result_serializer": native, "task_default_queue": f"results-{native}-{backend}"}
    url = {"redis": None, "rpc": "rpc://"}[backend]
    with bench.worker("-P", "solo", name=f"{native}-{backend}", conf=conf, backend=url):
        _, (one, two, error, three) = bench.run(
            READER, offload=None, block=True, conf=conf, backend=url
        )
        assert (one, two, three) == ("r", "rr", "rrr")
        assert error[0] == "DecodeError"
        assert "install or upgrade offload here" in error[1]
        state, (_, _, ours, _) = bench.run(READER, conf=conf, backend=url)
        assert (state, ours) == ("SUCCESS", "r" * 60_000)
