"""Values that one group call publishes in many messages are serialized once."""

from __future__ import annotations

import functools
import itertools
import uuid

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import xarray as xr
from celery import Celery, Signature, Task, chain, chord, group
from celery.app.amqp import AMQP
from celery.signals import before_task_publish

from offload import Offload
from offload.hooks.publish import amqp_class
from offload.hooks.usercode import is_user_code
from offload.ref import wire_text
from tests.support.wire import make_wire

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
def sent(app):
    """Return the bodies of the messages that the test sends."""
    bodies = []

    def catch(producer, name, message, **options):
        bodies.append(message.body)

    app.amqp.__dict__["send_task_message"] = catch
    return bodies


def serialised(app) -> int:
    counts = app.offload.counters.snapshot()
    return counts["values_offloaded"] - counts["values_remembered"]


def test_a_group_of_a_list_serializes_a_shared_value_once(app):
    """Fifty tasks with the same object serialize it once and refer to it fifty times."""
    group([app.tasks["use"].s(VALUE, n) for n in range(50)]).apply_async()
    assert app.offload.counters.snapshot()["values_offloaded"] == 50
    assert serialised(app) == 1


def test_a_chords_body_is_serialized_once(app):
    """A chord body's large argument is in each header task's message, and is serialized once."""
    header = [app.tasks["use"].s("small", n) for n in range(20)]
    chord(header, app.tasks["gather"].s(VALUE)).apply_async()
    assert serialised(app) == 1


def test_a_group_of_a_generator_serializes_every_value_again(app, sent):
    """A generator may change a buffer between messages: each carries the current state."""
    buffer = bytearray(100_000)

    def tasks():
        for n in range(3):
            buffer[0] = n
            yield app.tasks["use"].s(buffer, n)

    group(tasks()).apply_async()
    first, second, third = (body[0][0]["__offload__"].partition("&")[0] for body in sent)
    assert first != second == third  # Celery takes one task more than it publishes


@pytest.mark.parametrize("place", ("signature", "backend"))
def test_user_code_between_messages_may_change_a_value(app, sent, monkeypatch, place):
    """Each message carries the value at the time of sending, whatever user code runs in between."""
    buffer = bytearray(100_000)

    def change(call):
        @functools.wraps(call)
        def changed(*args, **options):
            buffer[0] += 1
            return call(*args, **options)

        return changed

    kind = Signature
    if place == "signature":
        kind = type("Theirs", (Signature,), {"clone": change(Signature.clone)})
    else:
        monkeypatch.setattr(app.backend, "on_task_call", change(app.backend.on_task_call))
    group([kind("use", args=(buffer, n), app=app) for n in range(3)]).apply_async()
    refs = {body[0][0]["__offload__"].partition("&")[0] for body in sent}
    assert len(refs) > 1


def test_consecutive_calls_serialize_a_value_again(app):
    """Between two calls a mutable object may change, so nothing is remembered about it."""
    for n in itertools.islice(itertools.count(), 3):
        group([app.tasks["use"].s(VALUE, n)]).apply_async()
    assert serialised(app) == 3


def nothing(*args): ...


class Stamps(Task):
    """Numbers what it sends, in the caller's own object."""

    def apply_async(self, args=None, kwargs=None, **options):
        args[0]["stamp"] += 1
        return super().apply_async(args, kwargs, **options)


class Skips(Task):
    """Changes its arguments and publishes nothing."""

    def apply_async(self, args=None, kwargs=None, **options):
        args[0]["stamp"] += 1
        return self.AsyncResult("skipped")


def stamps_by_receiver(body, **_):
    rows = body[0][0]
    if "stamp" in rows:
        rows["stamp"] += 1


def stamps_by_route(name, args, kwargs, options, task=None, **_):
    args[0]["stamp"] += 1


GROUPS = {
    "each task": lambda tasks, rows: [tasks["stamps"].s(rows) for _ in range(3)],
    "a task between": lambda tasks, rows: [
        tasks["use"].s(rows, 1),
        tasks["skips"].s(rows),
        tasks["use"].s(rows, 1),
    ],
    "within a chain": lambda tasks, rows: [
        chain(tasks["stamps"].s(rows), tasks["use"].si(rows, 1)) for _ in range(2)
    ],
    "within a group": lambda tasks, rows: [
        tasks["use"].s(rows, 1),
        group([tasks["stamps"].s(rows), tasks["use"].s(rows, 1)]),
    ],
}


@pytest.mark.parametrize("tasks_of", GROUPS.values(), ids=GROUPS)
def test_a_value_changed_by_user_code_is_sent_as_in_plain_celery(tasks_of):
    """Each message carries the value at the time of publishing, whatever runs in between."""
    assert stamps_sent(tasks_of, plain=False) == stamps_sent(tasks_of, plain=True)


def test_a_value_changed_by_a_receiver_is_sent_as_in_plain_celery():
    """Receivers of ``before_task_publish`` see values, and change those of their message only."""
    before_task_publish.connect(stamps_by_receiver)
    try:
        tasks_of = GROUPS["a task between"]
        assert stamps_sent(tasks_of, plain=False) == stamps_sent(tasks_of, plain=True)
    finally:
        before_task_publish.disconnect(stamps_by_receiver)


def test_a_value_changed_by_a_route_is_sent_as_in_plain_celery():
    """A function in ``task_routes`` runs for each message and may change its value."""
    conf = {"task_routes": (stamps_by_route,)}
    tasks_of = GROUPS["a task between"]
    assert stamps_sent(tasks_of, plain=False, conf=conf) == stamps_sent(
        tasks_of, plain=True, conf=conf
    )


def stamps_sent(tasks_of, *, plain, conf=()):
    app = Celery("stamps", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(conf, task_default_queue=str(uuid.uuid4()))
    hook = None if plain else Offload(app, store=f"memory://{uuid.uuid4()}")
    for name, base in (("stamps", Stamps), ("skips", Skips), ("use", Task)):
        app.task(name=name, base=base, shared=False, typing=False)(nothing)
    group(tasks_of(app.tasks, {"stamp": 0, "rows": ["x" * 100] * 2000})).apply_async()
    sent = []
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
        while message := queue.get(no_ack=True):
            rows = message.decode()[0][0]
            text = wire_text(rows)
            sent.append((rows if text is None else hook._runtime.content.open(text).get())["stamp"])
    return sent


class Counting:
    """Its state is another one whenever it is serialized."""

    def __init__(self):
        self.rows = VALUE
        self.count = 0

    def __json__(self):
        self.count += 1
        return {"rows": self.rows, "count": self.count}

    def __reduce__(self):
        return dict, (list(self.__json__().items()),)


@pytest.mark.parametrize("native", ("json", "pickle"))
@pytest.mark.parametrize("within", (lambda value: value, lambda value: {"a": [value]}))
def test_a_value_whose_own_code_serializes_it_is_serialized_again(native, within):
    """A value whose class says how to serialize it may differ in each message."""
    wire = make_wire(conf={"task_serializer": native})
    seen = []

    def see(value):
        value = value if "count" in value else value["a"][0]
        seen.append(value["count"])

    task = wire.app.task(name="see", shared=False)(see)
    value = within(Counting())
    group([task.s(value) for _ in range(4)]).apply_async()
    wire.work()
    assert seen == sorted(set(seen)), "each message has its own state"
    assert len(seen) == 4


@pytest.mark.parametrize(
    "within",
    (
        lambda value: np.array([value], dtype=object),
        lambda value: np.array([(1, value)], dtype=[("a", "i4"), ("b", "O")]),
        lambda value: pd.DataFrame({"a": [1], "b": [value]}),
        lambda value: pd.Series([value], name="b"),
        lambda value: [{value}],
        lambda value: pd.DataFrame({"a": pd.Categorical([value])}),
        lambda value: pd.Categorical([value]),
        lambda value: pd.DataFrame({"a": [1]}, index=pd.CategoricalIndex([value])),
        lambda value: pd.DataFrame({"a": [1]}, index=pd.MultiIndex.from_arrays([[value], [1]])),
        lambda value: pd.Series(pd.arrays.SparseArray(np.array([value, None], object))),
        lambda value: with_attrs(pd.DataFrame({"a": [1]}), value),
        lambda value: xr.Dataset({"x": ("y", np.array([value], object))}),
    ),
    ids=(
        *("array", "structured array", "frame", "series", "set", "categories", "categorical"),
        *("categorical index", "multi-index", "sparse", "attributes", "dataset"),
    ),
)
def test_objects_in_an_array_are_serialized_for_each_message(within):
    """An array or frame whose objects say how to serialize them may differ in each message."""
    wire = make_wire(conf={"task_serializer": "pickle"})
    task = wire.app.task(name="take", shared=False)(nothing)
    counting = Counting()
    value = within(counting)
    group([task.s(value) for _ in range(4)]).apply_async()
    assert counting.count >= 4


def with_attrs(frame, value):
    frame.attrs["a"] = value
    return frame


PAIRS = pd.MultiIndex.from_product([["text", "more"], range(1000)])


@pytest.mark.parametrize(
    "value",
    (
        np.array(["text", None, np.float64(1), pd.Timestamp(0)] * 1000, dtype=object),
        pd.DataFrame({"a": ["text", "more"] * 1000}),
        pd.DataFrame({"a": ["text", None] * 1000}, PAIRS, dtype=object),
        pd.DataFrame({"a": pd.Categorical(["text", "more"] * 1000)}),
        with_attrs(pd.DataFrame({"a": range(1000)}), ["text"]),
        xr.DataArray(range(1000), {"x": range(1000)}, "x"),
        sp.coo_array(np.eye(100)),
    ),
    ids=["array", "frame", "pairs", "categories", "attributes", "coordinates", "sparse"],
)
def test_text_in_an_array_is_serialized_once(value, monkeypatch):
    """An array or frame of Python's or a library's own scalars is serialized once for the messages
    of a group.
    """
    wire = make_wire(conf={"task_serializer": "pickle"})
    task = wire.app.task(name="take", shared=False)(nothing)
    writer = wire.app._offload.content.writer
    serialize, calls = writer.serialize, []
    monkeypatch.setattr(writer, "serialize", lambda *a: calls.append(a) or serialize(*a))
    group([task.s(value) for _ in range(4)]).apply_async()
    assert len(calls) == 1


def test_a_wide_frame_is_searched_at_once(monkeypatch):
    """A search for a user's objects in a frame doesn't take out each of its columns."""
    taken = []
    indexer = type(pd.DataFrame().iloc)
    take = indexer.__getitem__
    monkeypatch.setattr(indexer, "__getitem__", lambda *key: taken.append(key) or take(*key))
    wire = make_wire(conf={"task_serializer": "pickle"})
    task = wire.app.task(name="take", shared=False)(nothing)
    for dtype in (float, object):
        value = pd.DataFrame(np.zeros((2, 1000), dtype))
        group([task.s(value) for _ in range(4)]).apply_async()
    assert len(taken) < 20


class Numbering(AMQP):
    """An app's own AMQP, which changes what is published."""

    def as_task_v2(self, task_id, name, args=None, kwargs=None, *given, **options):
        args[0][0] += 1
        return super().as_task_v2(task_id, name, args, kwargs, *given, **options)


def test_an_apps_own_amqp_sees_and_changes_values():
    """A method of the app's own AMQP class gets values, and changes what is sent."""
    wire = make_wire()
    wire.app.amqp_cls = amqp_class(Numbering)
    del wire.app.amqp
    seen = []

    @wire.app.task(name="see", shared=False)
    def task(rows):
        seen.append(rows[0])

    rows = [0, *VALUE]
    group([task.s(rows) for _ in range(3)]).apply_async()
    wire.work()
    assert seen == [1, 2, 3]


def test_an_immutable_value_is_serialized_once_whatever_runs_in_between(app):
    """Bytes are immutable, so one reference serves the whole group."""
    app.task(name="stamped", base=Tenant, shared=False)(nothing)
    value = bytes(100_000)
    group([app.tasks["stamped"].s(value, n) for n in range(10)]).apply_async()
    assert serialised(app) == 1


class Tenant(Task):
    def apply_async(self, args=None, kwargs=None, **options):
        return super().apply_async(args, kwargs, **options, headers={"tenant": 1})


def test_tracers_do_not_count_as_user_code():
    """Celery's own receivers and known tracers don't read arguments, so they don't count as user
    code.
    """
    assert not is_user_code(Task.apply_async)
    tracer = eval("lambda **_: None", {"__name__": "sentry_sdk.integrations.celery"})
    assert not is_user_code(functools.partial(tracer))
    assert is_user_code(Tenant().apply_async)
    assert is_user_code(stamps_by_receiver)
