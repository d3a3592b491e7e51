"""Eager calls return what a worker returns, with every serializer."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from celery import chain, chord, group

from offload import BlobMissing, Ref, SerializationError
from tests.support.wire import make_wire

ROWS = [1] * 2000
SERIALIZERS = ("json", "pickle", "msgpack", "yaml")


@pytest.fixture(params=SERIALIZERS)
def native(request):
    return request.param


@pytest.fixture
def both(native):
    """Return one app twice, eager and with a worker, and its tasks."""
    made = []
    for eager in (True, False):
        conf = {"task_serializer": native, "result_serializer": native, "accept_content": [native]}
        wire = make_wire(conf={**conf, "task_always_eager": eager})
        add_tasks(wire)
        made.append(wire)
    return made


def add_tasks(wire):
    def size(value, more=None):
        return [len(value), type(value).__name__, type(more).__name__]

    def within(value):
        return [len(value["rows"][0]), type(value["rows"][0]).__name__]

    def wants(value: Ref, *more: Ref):
        return [type(value).__name__, len(value.get()), *(len(ref.get()) for ref in more)]

    def put(count, value=None):
        return wire.hook.put([count] * 2000)

    def put_within(count):
        return {"a": [wire.hook.put([count] * 2000)]}

    def total(parts):
        return sum(map(sum, parts))

    def signed(items):
        return [type(item).__name__ for item in items[0]["args"]]

    def called(callback):
        return len(callback["kwargs"]["value"])

    for function in (size, within, wants, put, put_within, total, signed, called):
        wire.app.task(name=function.__name__, shared=False)(function)


def run(wire, call):
    result = call(wire.app.tasks, wire.hook.put(ROWS)).apply_async()
    wire.work()
    return result.get()


CALLS = {
    "argument": lambda t, ref: t["size"].s(ref),
    "keyword": lambda t, ref: t["size"].s(more=ref, value=ref),
    "nested": lambda t, ref: t["within"].s({"rows": [ref]}),
    "parameter": lambda t, ref: t["wants"].s(ref, ref, ROWS),
    "returned": lambda t, ref: t["put"].s(3),
    "chain": lambda t, ref: chain(t["put"].s(2), t["size"].s(more=ref)),
    "chain into a parameter": lambda t, ref: chain(t["put"].s(2), t["wants"].s(ref)),
    "group": lambda t, ref: group([t["size"].s(ref), t["put"].s(4)]),
    "array": lambda t, ref: t["size"].s(np.arange(5000), more=np.arange(3)),
    "nested arrays": lambda t, ref: t["size"].s([{"a": np.arange(5000)}], more=[np.arange(3)]),
    "arrays and references": lambda t, ref: t["size"].s([ref, np.arange(3)], more={"a": [ref]}),
    "arrays in a signature": lambda t, ref: t["signed"].s([t["size"].s(np.arange(5000), 1j)]),
    "a set": lambda t, ref: t["size"].s([{1, 2}, 1j], more=(Decimal(1), np.int64(3))),
}
CANVAS = {
    "chord": lambda t, ref: chord([t["put"].s(n, ref) for n in range(3)], t["total"].s()),
    "signature": lambda t, ref: t["called"].s(t["size"].s(value=ref)),
}


SIGNED = [CALLS[name] for name in ("chain", "chain into a parameter", "arrays in a signature")]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_eager_call_returns_what_a_worker_returns(both, native, call):
    """Eager calls resolve references in arguments and results as a worker does."""
    if native == "yaml" and call in SIGNED:
        pytest.skip("plain Celery writes no signatures as YAML")
    eager, worker = both
    got = run(eager, call)
    assert got == run(worker, call)
    assert not isinstance(got, Ref)


@pytest.mark.parametrize("call", CANVAS.values(), ids=CANVAS)
def test_an_eager_canvas_gives_values(both, native, call):
    """The body of an eager chord, and a signature passed as an argument, hold values."""
    if native == "yaml" and call is CANVAS["signature"]:
        pytest.skip("plain Celery writes no signatures as YAML")
    assert run(both[0], call) == {CANVAS["chord"]: 6000, CANVAS["signature"]: 2000}[call]


def test_references_in_shared_containers(native):
    """An eager call resolves a reference in lists that are nested 40 times and share each other."""
    if native != "pickle":
        pytest.skip("others write each list as often as it occurs")
    wire = make_wire(conf={"task_serializer": "pickle", "task_always_eager": True})
    seen = []
    see = wire.app.task(name="see", shared=False)(task_that(seen.append))
    nested = [wire.hook.put(ROWS)]
    for _ in range(40):
        nested = [nested, nested]
    see.delay(nested)
    (found,) = seen
    for _ in range(40):
        assert found[0] is found[1]
        found = found[0]
    assert found == [ROWS]


def test_signatures_in_shared_containers(native):
    """An eager call with a signature in lists that share each other, or contain themselves, takes
    no exponential time.
    """
    if native != "pickle":
        pytest.skip("others write each list as often as it occurs")
    wire = make_wire(conf={"task_serializer": "pickle", "task_always_eager": True})
    seen = []
    see = wire.app.task(name="see", shared=False)(task_that(seen.append))
    nested = [see.s(1)]
    for _ in range(40):
        nested = [nested, nested]
    cycle = [see.s(1)]
    cycle.append(cycle)
    for value in (nested, cycle):
        see.delay(value)
    assert seen[0][0] is seen[0][1]
    assert seen[1][1] is seen[1]


def test_a_link_gets_what_a_task_returned(both):
    """The callback of an eager task that returns a Ref receives the value."""
    eager = both[0]
    seen = []
    eager.app.task(name="seen", shared=False)(task_that(seen.append))
    eager.app.tasks["put"].apply_async((5,), link=eager.app.tasks["seen"].s())
    assert seen == [[5] * 2000]


def task_that(do):
    def task(value):
        do(value)

    return task


def test_an_eager_result_that_is_stored(both):
    """With ``task_store_eager_result`` the result is stored by the reference that the task
    returned.
    """
    eager = both[0]
    eager.app.conf.task_store_eager_result = True
    eager.app.tasks["put"].store_eager_result = True
    uploads = eager.calls.count("put")
    result = eager.app.tasks["put"].delay(7)
    assert result.get() == [7] * 2000
    assert eager.app.AsyncResult(result.id).get(timeout=10) == [7] * 2000
    assert eager.calls.count("put") == uploads + 1


def test_an_eager_result_may_not_hold_references(both):
    """An eager result that contains references is refused, as on a worker."""
    with pytest.raises(SerializationError, match="has Refs inside"):
        both[0].app.tasks["put_within"].delay(1).get()


def test_an_eager_task_with_a_missing_value_fails(both):
    """An eager task whose value is missing fails with a worker's error, which names the task."""
    eager = both[0]
    ref = eager.hook.put(ROWS)
    eager.hook.store.blobs.delete([info.digest for info in eager.hook.store.blobs.scan()])
    with pytest.raises(BlobMissing, match="task 'size', value: "):
        eager.app.tasks["size"].delay(ref).get()


def test_without_references_an_eager_call_needs_no_store():
    """An eager call without references uses Celery's serializer and doesn't open the store."""
    wire = make_wire(store=None, conf={"task_always_eager": True})
    add_tasks(wire)
    assert wire.app.tasks["size"].delay(ROWS).get() == [2000, "list", "NoneType"]


def test_an_eager_task_gets_a_copy(both):
    """A task that changes its argument, also an array, doesn't change the caller's object."""
    eager = both[0]
    eager.app.task(name="clear", shared=False)(task_that(lambda value: value.fill(0)))
    array = np.ones(5000)
    eager.app.tasks["clear"].delay(array)
    assert array.sum() == 5000
