from __future__ import annotations

import contextlib
import itertools
import json
from collections import OrderedDict, defaultdict, deque
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, Optional

import numpy as np
import pytest
from celery import Celery, chain, group, shared_task, signature
from celery.result import AsyncResult

from offload import (
    BlobMissing,
    ConfigurationError,
    IntegrityError,
    InvalidRef,
    LostValue,
    Offload,
    Ref,
    SerializationError,
    UnsupportedVersion,
)
from offload.ref import Keys, wire_text
from tests.support.wire import make_wire

BIG = {"numbers": list(range(2000)), "text": "big"}
SMALL = {"small": True}


def same(value=None, **more):
    return value


@pytest.fixture
def wire():
    return make_wire()


def is_ref(value):
    return wire_text(value) is not None


@pytest.fixture
def tasks(wire):
    app = wire.app

    class Tasks:
        @app.task(name="echo", shared=False)
        def echo(value, *more):
            return value

        @app.task(name="kind", shared=False)
        def kind(value, other=None):
            return type(value).__name__

        @app.task(name="inline_config", shared=False, offload={"inline": ["config"]})
        def inline_config(frame, config):
            return [frame == BIG, config == BIG]

        @app.task(name="inline_all", shared=False, offload={"inline": ("*",)})
        def inline_all(frame, config=None):
            return frame == BIG

        @app.task(name="no_results", shared=False, offload={"results": False})
        def no_results(value):
            return value

        @app.task(name="never", shared=False, offload=False)
        def never(value):
            return value

        @app.task(name="tiny", shared=False, offload={"threshold": 10})
        def tiny(value):
            return value

        @app.task(name="wants", shared=False)
        def wants(value: Ref):
            return [type(value).__name__, value.get()]

        @app.task(name="wants_of", shared=False)
        def wants_of(other, *, value: Ref[list]):
            return [type(value).__name__, value.get(), type(other).__name__]

        @app.task(name="wants_text", shared=False)
        def wants_text(value: Ref[DataFrame]):  # noqa: F821  # as under TYPE_CHECKING
            return [type(value).__name__, value.get()]

        @app.task(name="wants_optional", shared=False)
        def wants_optional(value: Optional[Ref] = None):  # noqa: UP045
            return [type(value).__name__]

        @app.task(name="wants_list", shared=False)
        def wants_list(parts: list[Ref]):
            return parts and [[type(part).__name__, part.get()] for part in parts]

        @app.task(name="pass_on", shared=False)
        def pass_on(value: Ref):
            Tasks.echo.delay(value)
            return value

        @app.task(name="size", shared=False)
        def size(value):
            return len(value)

    return Tasks


# -- which values are stored


def test_large_values_travel_by_reference(wire, tasks):
    """Values of at least the threshold are replaced, positional or keyword; others are not."""
    args, kwargs, _ = wire.body(tasks.echo, BIG, SMALL, "x" * 2000)
    assert is_ref(args[0])
    assert args[1] == SMALL
    assert is_ref(args[2])
    args, kwargs, _ = wire.body(tasks.kind, value=SMALL, other=BIG)
    assert kwargs["value"] == SMALL
    assert is_ref(kwargs["other"])


def test_the_threshold_is_exact(wire, tasks):
    """A value whose serialized size equals the threshold is replaced; one byte less stays."""
    beyond = wire.hook.put("").size
    args, _, _ = wire.body(tasks.echo, "x" * (999 - beyond), "x" * (1000 - beyond))
    assert args[0] == "x" * (999 - beyond)
    assert is_ref(args[1])


def test_inline_by_name(wire, tasks):
    """A parameter named in ``inline`` stays in the message, positional and by keyword."""
    args, _, _ = wire.body(tasks.inline_config, BIG, BIG)
    assert (is_ref(args[0]), args[1]) == (True, BIG)
    _, kwargs, _ = wire.body(tasks.inline_config, frame=BIG, config=BIG)
    assert (is_ref(kwargs["frame"]), kwargs["config"]) == (True, BIG)
    wire.work()


def test_inline_all(wire, tasks):
    """``inline=("*",)`` keeps every argument in the message."""
    args, kwargs, _ = wire.body(tasks.inline_all, BIG, config=BIG)
    assert (args[0], kwargs["config"]) == (BIG, BIG)
    assert wire.calls == []


def test_inline_in_embedded_signatures(wire, tasks):
    """A task's options also apply to its signatures in other tasks' messages."""
    body = tasks.echo.s(1) | tasks.inline_config.s(BIG) | tasks.inline_all.s(BIG)
    body.delay()
    _, _, embed = wire.sent[-1][1]
    last, middle = embed["chain"]
    assert middle["args"][0] == BIG
    assert last["args"][0] == BIG


def test_results_false(wire, tasks):
    """With ``results: False`` a large result is stored as plain Celery stores it."""
    result = tasks.no_results.delay(BIG)
    assert wire.get(result) == BIG
    assert row(wire, result)["result"] == BIG
    result = tasks.echo.delay(BIG)
    assert wire.get(result) == BIG
    assert "offload" in row(wire, result)


def row(wire, result):
    """Return a result's metadata as the backend stores it."""
    backend = wire.app.backend
    return backend.decode(backend.get(backend.get_key_for_task(result.id)))


def test_offload_false(wire, tasks):
    """``offload=False`` leaves a task's arguments and results to plain Celery."""
    args, _, _ = wire.body(tasks.never, BIG)
    assert args[0] == BIG
    assert wire.run(tasks.never, BIG) == BIG
    assert wire.calls == []


def test_threshold_of_a_task(wire, tasks):
    """A task's own threshold applies to its arguments and its result."""
    args, _, _ = wire.body(tasks.tiny, "x" * 20)
    assert is_ref(args[0])
    result = tasks.tiny.delay("x" * 20)
    assert wire.get(result) == "x" * 20
    assert "offload" in row(wire, result)


@pytest.mark.parametrize(
    ("app", "task", "call", "by_reference"),
    [
        (app, task, call, next(o for o in (call, task, app) if o is not None))
        for app in (True, False)
        for task in (None, True, False)
        for call in (None, True, False)
    ],
)
def test_a_call_overrides_a_task_overrides_the_app(app, task, call, by_reference):
    """Options of a call override those of a task, which override those of the app."""
    thresholds = {True: 100, False: 100_000, None: None}
    wire = make_wire(threshold=thresholds[app])
    own = {} if task is None else {"offload": {"threshold": thresholds[task]}}
    options = {} if call is None else {"offload": {"threshold": thresholds[call]}}
    echo = wire.app.task(name="echo", shared=False, **own)(same)
    result = echo.apply_async(("x" * 1000,), **options)
    assert is_ref(wire.sent[-1][1][0][0]) is by_reference
    assert wire.get(result) == "x" * 1000
    assert ("offload" in row(wire, result)) is by_reference


def test_options_of_a_call_survive_a_retry(wire):
    """Options of a call also apply to its retries."""
    app = wire.app

    @app.task(name="again", shared=False, bind=True)
    def again(self, value):
        if not self.request.retries:
            raise self.retry(countdown=0)
        return value

    result = again.apply_async((BIG,), offload={"results": False, "inline": ["value"]})
    assert wire.get(result) == BIG
    bodies = [body for _, body in wire.sent]
    assert [body[0][0] for body in bodies] == [BIG, BIG]
    assert row(wire, result)["result"] == BIG


def test_options_in_a_signature(wire, tasks):
    """``.set(offload=…)`` applies wherever the signature is sent from."""
    tasks.echo.s(BIG).set(offload={"inline": ["*"]}).delay()
    assert wire.sent[-1][1][0][0] == BIG
    (tasks.echo.s(1) | tasks.kind.s(BIG).set(offload=False)).delay()
    assert wire.sent[-1][1][2]["chain"][0]["args"][0] == BIG
    wire.work()


def test_names_of_inline_parameters_add_up():
    """Inline names of app, task, and call are combined."""
    wire = make_wire(inline=["headers"])
    app = wire.app

    @app.task(name="page", shared=False, offload={"inline": ["config"]})
    def page(table, headers, config, context): ...

    page.apply_async((BIG, BIG, BIG, BIG), offload={"inline": ["context"]})
    assert list(map(is_ref, wire.sent[-1][1][0])) == [True, False, False, False]


def test_a_threshold_applies_to_stored_values(wire, tasks):
    """A call's threshold decides, even if the same object already has a reference."""
    text = "x" * 70_000
    assert is_ref(wire.body(tasks.echo, text)[0][0])
    tasks.echo.apply_async((text,), offload={"threshold": 80_000})
    assert wire.sent[-1][1][0][0] == text
    assert is_ref(wire.body(tasks.echo, text)[0][0])


@pytest.mark.parametrize("offload", ({"inlin": []}, {"threshold": -1}, 7, {"results": "no"}))
def test_a_wrong_option_is_refused(wire, tasks, offload):
    """A wrong option of a call raises ConfigurationError naming the task; nothing is sent."""
    with pytest.raises(ConfigurationError, match="echo"):
        tasks.echo.apply_async((1,), offload=offload)
    assert wire.sent == []


# -- Ref as a parameter


@pytest.mark.parametrize("value", (BIG, SMALL, 1), ids=("large", "small", "scalar"))
def test_an_annotated_parameter_receives_the_reference(wire, tasks, value):
    """A parameter annotated Ref receives a reference, whether the value is large or small."""
    assert wire.run(tasks.wants, value) == ["Ref", value]
    assert wire.run(tasks.wants, value=value) == ["Ref", value]
    assert wire.run(tasks.wants_text, value) == ["Ref", value]
    assert wire.run(tasks.wants_of, value, value=value)[:2] == ["Ref", value]
    assert wire.run(tasks.wants_optional, value) == ["Ref"]


def test_others_are_resolved_beside_it(wire, tasks):
    """Only the annotated parameter receives a reference; the others receive values."""
    assert wire.run(tasks.wants_of, BIG, value=BIG)[2] == "dict"
    assert wire.run(tasks.wants_optional) == ["NoneType"]


def test_a_list_of_references(wire, tasks):
    """A parameter annotated ``list[Ref]`` receives a list of references, also from a chord."""
    refs = [wire.hook.put([i] * 1000) for i in range(3)]
    assert wire.run(tasks.wants_list, refs) == [["Ref", [i] * 1000] for i in range(3)]


@pytest.mark.parametrize("how", ("message", "eager"))
def test_a_list_of_references_whatever_its_size(wire, tasks, how):
    """A parameter `list[Ref]` receives a list of references also if its items are in the message,
    or if the whole list was stored. Another value, such as None, stays itself.
    """
    wire.app.conf.task_always_eager = how == "eager"

    def run(value):
        result = tasks.wants_list.delay(value)
        return result.get() if how == "eager" else wire.get(result)

    large, ref = [5] * 1000, wire.hook.put([4] * 1000)
    for parts in ([1, [2]], (1, 2), [large, large], [large, ref, 3], []):
        values = [[4] * 1000 if part is ref else part for part in parts]
        assert run(parts) == [["Ref", value] for value in values]
    assert run(wire.hook.put([large, 1])) == [["Ref", large], ["Ref", 1]]
    assert run(None) is None


def test_an_annotated_parameter_fetches_nothing(wire, tasks):
    """A reference whose value isn't used costs no read."""
    result = tasks.wants_optional.delay(BIG)
    wire.calls.clear()
    wire.work()
    assert "get" not in wire.calls
    assert result.get() == ["Ref"]


def test_a_reference_is_passed_on(wire, tasks):
    """A task may pass its Ref to another task and return it; neither stores the value again."""
    result = tasks.pass_on.delay(BIG)
    uploads = wire.calls.count("put")
    assert wire.get(result) == BIG
    assert wire.calls.count("put") == uploads


def test_a_direct_call_keeps_its_reference(wire, tasks):
    """A task called as a function within a worker keeps the Ref in its annotated parameter."""
    app = wire.app
    wire.run(tasks.wants, 1)  # like a worker that prepares all its tasks when it starts
    wire.run(tasks.kind, 1)

    @app.task(name="caller", shared=False)
    def caller(value: Ref):
        return [tasks.wants(value), tasks.kind(value)]

    assert wire.run(caller, BIG) == [["Ref", BIG], "dict"]


def test_the_rest_of_the_arguments_as_references(wire):
    """``*rest: Ref`` and ``**more: Ref`` receive references, whether values are large or small."""

    @wire.app.task(name="rest", shared=False)
    def rest(first, *rest: Ref, **more: Ref):
        return [type(first).__name__, *(r.get() for r in (*rest, *more.values()))]

    assert wire.run(rest, BIG, BIG, SMALL, more=BIG) == ["dict", BIG, SMALL, BIG]
    assert rest.apply((BIG, BIG, SMALL), {"more": BIG}).get() == ["dict", BIG, SMALL, BIG]


def test_an_eager_call_passes_the_reference(wire, tasks):
    """In eager mode, an annotated parameter receives a Ref and the others receive values."""
    ref = wire.hook.put(BIG)
    assert tasks.wants.apply((BIG,)).get() == ["Ref", BIG]
    assert tasks.wants.apply((ref,)).get() == ["Ref", BIG]
    assert tasks.kind.apply((ref,)).get() == "dict"


def test_eager_needs_no_store(wire, tasks):
    """Eager tasks don't use the store."""
    assert tasks.echo.apply((BIG,)).get() == BIG
    assert chain(tasks.echo.s(BIG), tasks.kind.s()).apply().get() == "dict"
    assert wire.calls == []


# -- put


def test_put_once_and_pass_often(wire, tasks):
    """Passing a Ref a hundred times makes no store call after its put."""
    ref = wire.hook.put(BIG)
    wire.calls.clear()
    results = [tasks.size.delay(ref) for _ in range(100)]
    assert wire.calls == []
    wire.work()
    assert {result.get() for result in results} == {2}
    assert set(wire.calls) == {"get"}


@pytest.mark.parametrize(("tracked", "days"), ((True, 7), (False, 1)))
def test_a_queue_may_stand_still_over_a_weekend(tmp_path, tracked, days):
    """By default, messages and puts hold their values for a week where holds are tracked; where
    values live by age, for a day.
    """
    store = {} if tracked else {"store": f"file://{tmp_path}"}
    wire = make_wire(watch=False, **store)

    @wire.app.task(name="keep", shared=False)
    def keep(value): ...

    for send in (keep.delay, wire.hook.put):
        send({**BIG, "by": repr(send)})
        (info,) = wire.hook.store.blobs.scan()
        assert 0.99 * days < info.ttl / 86400 < 1.3 * days
        wire.hook.store.blobs.delete([info.digest])


def test_references_within_containers(wire, tasks):
    """Refs in lists, tuples and dicts of arguments arrive as their values."""
    ref = wire.hook.put(BIG)
    value = {"a": [ref, {"b": (ref, 1)}], "c": 2}
    assert wire.run(tasks.echo, value) == {"a": [BIG, {"b": [BIG, 1]}], "c": 2}
    assert value["a"][0] is ref


def test_numbers_as_keys_beside_references(wire, tasks):
    """Under JSON, integer keys of a dict become strings, also next to a Ref."""
    ref = wire.hook.put(BIG)
    assert wire.run(tasks.echo, {1: ref, "1a": 0}) == {"1": BIG, "1a": 0}


@pytest.mark.parametrize("native", ("json", "pickle", "msgpack", "yaml"))
def test_to_put_a_reference_returns_it(native):
    """Putting a Ref returns it and stores neither the value again nor the reference's text."""
    wire = make_wire(conf={"task_serializer": native, "accept_content": [native]})
    ref = wire.hook.put(BIG)
    again = wire.hook.put(Ref.unbound(ref.wire), retention=10 * 86400)
    assert again == ref
    assert again.get() == BIG
    assert wire.calls.count("put") == 1
    assert max(info.ttl for info in wire.hook.store.blobs.scan()) > 9 * 86400
    assert wire.hook.put(Ref.local([1])).get() == [1]
    with pytest.raises(InvalidRef):
        wire.hook.put(make_wire().hook.put(BIG))


class Holder:
    def __init__(self, ref):
        self.ref = ref

    def __json__(self):
        return {"ref": self.ref}


class Pair(NamedTuple):
    first: Any
    second: Any


NO_PATHS = {
    "ordered dict": lambda ref: OrderedDict(a=ref),
    "default dict": lambda ref: defaultdict(int, a=[ref]),
    "named tuple": lambda ref: Pair(ref, 1),
    "set": lambda ref: {ref},
    "deque": lambda ref: deque([ref]),
    "within a list": lambda ref: [{"a": OrderedDict(a=ref)}],
    "within a shared list": lambda ref: [[OrderedDict(a=ref)]] * 2,
}


@pytest.mark.parametrize("eager", (False, True))
@pytest.mark.parametrize("native", ("json", "pickle", "msgpack", "yaml"))
@pytest.mark.parametrize("make", NO_PATHS.values(), ids=NO_PATHS)
def test_references_that_cannot_be_resolved_are_refused(native, make, eager):
    """A reference in a container of another kind is refused in arguments, results, and values that
    are put; no task or reader ever receives its text.
    """
    conf = {"task_serializer": native, "result_serializer": native, "task_always_eager": eager}
    wire = make_wire(conf={**conf, "accept_content": ["json", "pickle", "msgpack", "yaml"]})
    seen = []

    @wire.app.task(name="see", shared=False)
    def see(value):
        seen.append(value)

    @wire.app.task(name="make", shared=False)
    def make_one():
        return make(wire.hook.put(BIG))

    value = make(wire.hook.put(BIG))
    with pytest.raises(SerializationError, match=r"task 'see', value.*list, tuple, or dict"):
        see.delay(value)
    with pytest.raises(SerializationError):
        wire.hook.put(value)
    if not eager:
        with pytest.raises(SerializationError, match="task 'make', result"):
            wire.run(make_one)
    assert seen == []


@pytest.mark.parametrize("make", NO_PATHS.values(), ids=NO_PATHS)
def test_a_direct_call_refuses_what_a_message_would(wire, make):
    """A task that is called as a function within a worker, or by ``apply``, doesn't run with a
    reference in a container of another kind, unless its parameter is annotated Ref.
    """
    seen = []

    @wire.app.task(name="see", shared=False)
    def see(value, more: Ref = None):
        seen.append(value)

    value = make(wire.hook.put(BIG))
    refused = r"task 'see', value: cannot send references in a"
    with pytest.raises(SerializationError, match=refused):
        see.apply((value,), throw=True)
    with pytest.raises(SerializationError, match=refused):
        see(value)
    assert seen == []
    see(1, value)
    assert seen == [1]


@pytest.mark.parametrize("native", ("json", "pickle", "msgpack", "yaml"))
@pytest.mark.parametrize("eager", (False, True))
def test_a_small_value_in_a_reference_is_passed_on(native, eager):
    """A task whose parameter is annotated Ref may pass on what it got, also where the value was
    small enough to travel in the message; other tasks receive the value.
    """
    conf = {"task_serializer": native, "accept_content": [native], "task_always_eager": eager}
    wire = make_wire(conf=conf)
    seen = []

    @wire.app.task(name="see", shared=False)
    def see(*values, more=None):
        seen.append((list(values), more))

    @wire.app.task(name="forward", shared=False)
    def forward(value: Ref):
        see.delay(value, [value, {"a": value}], more=value)
        if native != "yaml":  # it writes no signatures
            see.apply_async((), link=see.si(value, more=[value]))

    wire.app.tasks["forward"].delay(7)
    wire.work()
    linked = [] if native == "yaml" else [([], None), ([7], [7])]
    assert seen == [([7, [7, {"a": 7}]], 7), *linked]


@pytest.mark.parametrize("native", ("json", "pickle", "msgpack", "yaml"))
@pytest.mark.parametrize("within", (lambda ref: {"a": [ref]}, lambda ref: [(ref,)], Holder))
def test_a_value_that_holds_references_is_refused(native, within):
    """A value that holds references, in containers or in objects that JSON serializes, can't be
    put.
    """
    wire = make_wire(conf={"task_serializer": native, "accept_content": [native]})
    value = within(wire.hook.put(BIG))
    if (native, within) == ("pickle", Holder):  # an object that is pickled keeps its reference
        with pytest.raises(InvalidRef, match=r"Offload\.get"):
            wire.hook.put(value).get().ref.get()
        return
    with pytest.raises(SerializationError):
        wire.hook.put(value)


def test_private_values(wire, tasks):
    """No task sees how another changes its value, however often the value is passed."""
    app = wire.app
    seen = []

    @app.task(name="spoil", shared=False)
    def spoil(array, table):
        seen.append((int(array.sum()), len(table["numbers"])))
        array[:] = 7
        table["numbers"].clear()

    array, table = wire.hook.put(np.ones(1000)), wire.hook.put(BIG)
    for _ in range(3):
        wire.run(spoil, array, table)
    assert seen == [(1000, 2000)] * 3


def test_a_returned_reference(wire, tasks):
    """The result of a task that returns a Ref is the value."""
    app = wire.app
    ref = wire.hook.put(BIG)

    @app.task(name="give", shared=False)
    def given():
        return ref

    assert wire.run(given) == BIG
    assert wire.get(chain(given.s(), tasks.kind.s())()) == "dict"


@pytest.mark.parametrize("native", ("json", "pickle"))
def test_numpy_arrives_as_sent(native):
    """An array, which JSON can't serialize, arrives equal, large or small."""
    wire = make_wire(conf={"task_serializer": native, "result_serializer": native})
    seen = []

    @wire.app.task(name="take", shared=False)
    def take(array):
        seen.append(array)
        return array

    for size in (3, 10_000):
        array = np.arange(size, dtype="float32")
        result = wire.run(take, array)
        assert result.dtype == seen[-1].dtype == array.dtype
        assert (result == array).all()
        assert (seen[-1] == array).all()


# -- cost


def test_small_tasks_leave_the_store_alone(wire, tasks):
    """Tasks with small arguments and results make no store call."""
    for value in (1, "text", None, SMALL, [1, 2, 3], {"a": {"b": [1.5]}}):
        assert wire.run(tasks.echo, value) == value
    assert wire.run(tasks.kind, "a", other=SMALL) == "str"
    result = wire.get(chain(tasks.echo.s(1), tasks.echo.s(), tasks.kind.s())())
    assert result == "int"
    assert wire.calls == []


def test_a_chain_uploads_once(wire, tasks):
    """A value that passes through a chain unchanged is serialized and uploaded once."""
    result = chain(tasks.echo.s(BIG), tasks.echo.s(), tasks.echo.s())()
    wire.work()
    counts = wire.hook.counters.snapshot()
    assert counts["blobs_uploaded"] == 1
    assert counts["values_offloaded"] == 4  # the argument, and each task's result: once each
    assert result.get() == BIG


def test_signatures_from_a_generator(wire, tasks):
    """Large arguments of a group's signatures are replaced, also those made by a generator."""
    chain(tasks.echo.s(1), group(tasks.echo.si([BIG, i]) for i in range(3)))()
    (embedded,) = wire.sent[-1][1][2]["chain"]
    assert [is_ref(task["args"][0]) for task in embedded["kwargs"]["tasks"]] == [True] * 3


def test_chunks_in_a_chain(wire, tasks):
    """Items of chunks are replaced one by one, because Celery must count them."""
    chain(tasks.echo.s(1), tasks.echo.chunks([(BIG, i) for i in range(4)], 2))()
    (embedded,) = wire.sent[-1][1][2]["chain"]
    calls = embedded["kwargs"]["it"]
    assert [(is_ref(value), i) for value, i in calls] == [(True, i) for i in range(4)]
    assert embedded["kwargs"]["n"] == 2


def test_looking_at_a_state_reads_nothing(wire, tasks):
    """State, success, and metadata of a result are available without reading its value."""
    result = tasks.echo.delay(BIG)
    wire.work()
    wire.calls.clear()
    again = AsyncResult(result.id, app=wire.app)
    assert (again.state, again.ready(), again.successful()) == ("SUCCESS", True, True)
    assert wire.app.backend.get_task_meta(result.id)["status"] == "SUCCESS"
    assert wire.app.backend.get_state(result.id) == "SUCCESS"
    assert wire.calls == []
    assert again.result == BIG
    assert "get" in wire.calls


# -- modes


def bodies_of(wire):
    return [json.dumps(body) for _, body in wire.sent]


def calls_for_modes(wire):
    echo = wire.app.task(name="echo", shared=False)(same)
    ids = (f"id-{i}" for i in itertools.count())
    for value in (BIG, SMALL, "x" * 5000):
        echo.apply_async((value,), {"named": value}, task_id=next(ids))
    echo.apply_async((1,), task_id=next(ids), link=echo.si(BIG).set(task_id="linked"))
    return echo


def test_observe_changes_no_message():
    """In mode observe, bodies are byte for byte those of mode off, and savings are counted."""
    plain, observing = make_wire(mode="off"), make_wire(mode="observe")
    for wire in (plain, observing):
        calls_for_modes(wire)
    assert bodies_of(plain) == bodies_of(observing)
    assert all("offload" not in headers for headers, _ in observing.sent)
    assert observing.calls == []
    counts = observing.hook.counters.snapshot()
    assert counts["observed_values"] >= 4
    assert counts["observed_bytes"] > 10_000
    assert counts["values_offloaded"] == 0


@pytest.mark.parametrize("mode", ("observe", "off"))
def test_other_modes_need_no_store(mode):
    """An app without Redis runs in modes observe and off without further settings."""
    wire = make_wire(mode=mode, store=None, watch=False)
    echo = calls_for_modes(wire)
    assert wire.run(echo, BIG) == BIG


@pytest.mark.parametrize("mode", ("observe", "off"))
def test_other_modes_resolve_references(mode):
    """Every mode resolves the references in messages that were published in mode on."""
    wire = make_wire()
    echo = wire.app.task(name="echo", shared=False)(same)
    result = echo.delay(BIG)
    other = make_wire(mode=mode, store=wire.hook.settings.store, watch=False)
    seen = []

    @other.app.task(name="echo", shared=False)
    def echo_elsewhere(value):
        seen.append(value)

    other.app.conf.task_default_queue = wire.app.conf.task_default_queue
    other.work()
    assert seen == [BIG]
    assert result.id


@pytest.mark.parametrize("serializer", ("json", "pickle", "msgpack", "yaml"))
@pytest.mark.parametrize(
    ("theirs", "setting"),
    (
        ({"store": "memory://theirs"}, "offload_store"),
        ({"store": "memory://theirs", "secret": "a secret of the publisher"}, "offload_store"),
    ),
)
def test_a_message_for_another_store(theirs, setting, serializer):
    """A task whose message uses another store fails; the error names both keys and the setting to
    check.
    """
    conf = {"task_serializer": serializer, "accept_content": [serializer, "json"]}
    here, there = make_wire(conf=conf, threshold=10), make_wire(conf=conf, threshold=10, **theirs)
    here.app.conf.task_default_queue = there.app.conf.task_default_queue
    for each in (here, there):
        each.app.task(name="same", shared=False)(same)
    there.app.tasks["same"].delay("x" * 5000)
    message = here.take()
    here.execute(message)
    error = here.app.AsyncResult(message.headers["id"]).result
    assert isinstance(error, InvalidRef)
    known = [each.hook._runtime.content.signing.keys.fingerprints[0] for each in (there, here)]
    assert "theirs {}, ours {}".format(*known) in str(error)
    assert setting in str(error)


# -- connecting


def test_a_second_offload_is_refused(wire):
    """An app accepts one Offload; connecting it again changes nothing."""
    amqp = wire.app.amqp_cls
    wire.hook.init_app(wire.app)
    assert wire.app.amqp_cls is amqp
    with pytest.raises(ConfigurationError, match="already"):
        Offload(wire.app)


def test_before_init_app_there_is_no_app():
    """An Offload without an app says so."""
    with pytest.raises(ConfigurationError, match="init_app"):
        _ = Offload().app


@pytest.mark.parametrize("used_before", (True, False))
def test_a_factory(used_before):
    """``init_app`` works on an app that is partly used and defined."""
    hook = Offload(threshold=100, store="memory://factory")
    app = Celery("factory", broker="memory://", backend="cache+memory://", set_as_current=False)
    early = app.task(name="early", shared=False)(same)
    if used_before:
        app.finalize()
        assert app.amqp.queues is not None
        assert app.backend is not None
        assert early.backend is not None
    hook.init_app(app)
    late = app.task(name="late", shared=False)(same)
    for task in (early, late):
        result = task.delay("x" * 1000)
        message = app.amqp.create_task_message("id", task.name, ("x" * 1000,), {})
        assert is_ref(message.body[0][0])
        stored = app.backend
        assert stored._offload_hooked
        assert result.id


def test_queues_made_before_stay():
    """Queues added to the app before ``init_app`` remain."""
    app = Celery("queues", broker="memory://", set_as_current=False)
    app.amqp.queues.add("special")
    Offload(app, store="memory://queues")
    assert "special" in app.amqp.queues


class Configuration:
    CELERY_BROKER_URL = "memory://"
    CELERY_OFFLOAD_STORE = "memory://django"
    CELERY_OFFLOAD_THRESHOLD = 10
    CELERY_TASK_DEFAULT_QUEUE = "django"


@pytest.mark.parametrize("before", (True, False))
def test_settings_from_an_object_with_a_namespace(before):
    """``config_from_object`` with a namespace works before and after connecting."""
    app = Celery("django", set_as_current=False)
    hook = Offload(app) if before else None
    app.config_from_object(Configuration, namespace="CELERY")
    hook = hook or Offload(app)
    assert hook.settings.threshold == 10
    assert hook.settings.store == "memory://django"
    message = app.amqp.create_task_message("id", "any", ("x" * 100,), {})
    assert is_ref(message.body[0][0])


@pytest.mark.parametrize("before", (True, False))
def test_settings_from_conf_update(before):
    """``app.conf.update`` works before and after connecting."""
    app = Celery("flask", set_as_current=False)
    conf = {"broker_url": "memory://", "offload_store": "memory://flask", "offload_threshold": 10}
    if before:
        app.conf.update(conf)
    hook = Offload(app)
    if not before:
        app.conf.update(conf)
    assert hook.settings.threshold == 10


def test_a_wrong_setting_in_conf_is_named():
    """An unknown setting is refused; the error lists the existing ones."""
    app = Celery("wrong", broker="memory://", set_as_current=False)
    app.conf.offload_treshold = 1
    with pytest.raises(ConfigurationError, match=r"offload_treshold.*did you mean.*threshold"):
        _ = Offload(app).settings


def test_shared_tasks():
    """A shared task is offloaded like the app's own."""
    wire = make_wire()

    @shared_task(name="shared-here")
    def shared_here(value):
        return value

    wire.app.finalize()
    task = wire.app.tasks["shared-here"]
    assert is_ref(wire.body(task, BIG)[0][0])


def test_by_name_to_a_task_unknown_here(wire):
    """A call by name to a task that isn't registered here is offloaded, too."""
    wire.app.send_task("somewhere.else", (BIG,), {"named": BIG})
    args, kwargs, _ = wire.sent[-1][1]
    assert is_ref(args[0])
    assert is_ref(kwargs["named"])
    wire.app.send_task("somewhere.else", (BIG,), offload={"inline": ["*"]})
    assert wire.sent[-1][1][0][0] == BIG
    signature("somewhere.else", (BIG,), app=wire.app).delay()
    assert is_ref(wire.sent[-1][1][0][0])


# -- data shaped like a reference


def test_data_shaped_like_a_reference_stays_data(wire, tasks):
    """The text of a genuine reference in a user's data is passed on as data."""
    text = wire.hook.put(BIG).wire
    fake = {"__type__": "offload", "__value__": text}
    for value in (fake, [fake], {"a": fake}, {"__type__": "offload", "__value__": "nonsense"}):
        assert wire.run(tasks.echo, value) == value
        assert wire.run(tasks.kind, other=value, value=1) == "int"


def test_a_result_that_holds_refs_is_refused(wire, tasks):
    """A task whose result contains Refs fails: readers couldn't tell them from data."""

    @wire.app.task(name="holds_refs", shared=False)
    def holds_refs():
        return [wire.hook.put(BIG), 1]

    with pytest.raises(SerializationError, match=r"task 'holds_refs', result: .*Offload\.put"):
        wire.run(wire.app.tasks["holds_refs"])


@pytest.mark.parametrize("days", (2, 30))
def test_a_naive_eta_is_taken_in_the_latest_zone(wire, tasks, days):
    """A value for a naive ETA is held until that time in the westernmost time zone."""
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    tasks.echo.apply_async((BIG,), eta=now + timedelta(days=days))
    ref = wire.hook._runtime.content.open(wire_text(wire.sent[-1][1][0][0]))
    kept = ref.until - ref.created
    assert kept >= timedelta(days=days, hours=12).total_seconds() + wire.hook._runtime.retention


@pytest.mark.parametrize("serializer", ("json", "pickle", "yaml", "msgpack"))
@pytest.mark.parametrize("kind", (BlobMissing, IntegrityError, InvalidRef, UnsupportedVersion))
def test_a_failure_has_the_same_details_for_its_reader(kind, serializer, monkeypatch):
    """get() raises a worker's error with its class, task, argument, digest, and store."""
    conf = {"accept_content": [serializer], "result_serializer": serializer}
    wire = make_wire(conf={**conf, "task_serializer": serializer})

    @wire.app.task(name="kind", shared=False)
    def kind_of(value):
        return type(value).__name__

    sign = Keys.sign
    with monkeypatch.context() as patch:
        if kind in (InvalidRef, UnsupportedVersion):
            patch.setattr(Keys, "sign", lambda *a, **named: _damaged(sign(*a, **named), kind))
        result = kind_of.delay(BIG)
    blobs = wire.hook.store.blobs
    (digest,) = (info.digest for info in blobs.scan() if info.size > 1000)
    if kind is not InvalidRef:
        blobs.delete([digest])
    if kind is IntegrityError:
        blobs.put({digest: [b"\0something else"]}, 60)
    wire.work()
    with pytest.raises(kind, match="task 'kind', value: ") as caught:
        result.get(timeout=10)
    error = caught.value
    assert type(error) is kind
    assert (error.task, error.argument, error.digest) == ("kind", "value", digest)
    assert error.store == wire.hook.store.url


def _damaged(ref, kind):
    wire = ref.wire.replace("offload:1", "offload:9") if kind is UnsupportedVersion else ref.wire
    return replace(ref, wire=wire[:-1] + ("0" if wire[-1] == "1" else "1"))


SIGNATURE = {"task": "echo", "args": [], "kwargs": {}, "options": {}, "subtask_type": None}
SHAPED = {
    "options is a number": {"options": 4},
    "args is a number": {"args": 7},
    "kwargs is a list": {"kwargs": ["a"]},
    "an unknown option": {"options": {"offload": {"x": 1}}},
    "an odd link": {"options": {"link": [{**SIGNATURE, "options": 1}]}},
    "a long countdown": {"options": {"countdown": 3e9}},
    "a named canvas": {"task": "celery.group", "kwargs": {"tasks": 5}},
    "a real one": {"args": [1]},
}
PLACES = {
    "argument": lambda tasks, value: tasks.echo.s(value),
    "keyword": lambda tasks, value: tasks.echo.s(value=value),
    "nested": lambda tasks, value: tasks.echo.s([value, (value,)]),
    "chain": lambda tasks, value: tasks.echo.si(1) | tasks.echo.si(value),
    "link": lambda tasks, value: tasks.echo.si(1).set(link=tasks.echo.si(value)),
    "map": lambda tasks, value: tasks.echo.map([value, value]),
    "map in a chain": lambda tasks, value: chain(tasks.echo.si(1), tasks.echo.map([value])),
}


@pytest.mark.parametrize("native", ("json", "pickle", "msgpack"))
@pytest.mark.parametrize("place", PLACES)
def test_data_shaped_like_a_signature_is_data(native, place):
    """Data with the keys of a signature is published as in plain Celery and doesn't affect how long
    values are held.
    """
    if native == "pickle" and "map" in place:
        pytest.skip("plain Celery looks for the task of a pickled map in the current app")
    conf = {"task_serializer": native, "accept_content": [native, "json"]}
    wire = make_wire(conf=conf, retention=3600)
    seen = []

    class Tasks:
        @wire.app.task(name="echo", shared=False)
        def echo(value=None):
            seen.append(value)
            return 1

    for shape, items in SHAPED.items():
        value = {**SIGNATURE, **items, "more": "x" * 2000}
        PLACES[place](Tasks, value).apply_async()
        assert max(info.ttl for info in wire.hook.store.blobs.scan()) < 4000, shape
        wire.work()
        nested = [value, (value,) if native == "pickle" else [value]]
        assert seen[-1] == (nested if place == "nested" else value), shape


@pytest.mark.parametrize("option", ("countdown", "expires", "eta"))
@pytest.mark.parametrize("when", (float("nan"), float("inf"), 1e18, 10**400, "soon"))
@pytest.mark.parametrize("embedded", (False, True), ids=("of the call", "of a chain's step"))
def test_an_absurd_delay_holds_nothing_for_longer(tasks, wire, option, when, embedded):
    """A delay that is invalid or a century long is left to Celery to refuse."""
    if embedded:
        chain(tasks.echo.si(1), tasks.echo.si(BIG).set(**{option: when})).apply_async()
    else:
        with contextlib.suppress(Exception):  # it is Celery's to refuse
            tasks.echo.apply_async((BIG,), **{option: when})
    ttls = [info.ttl for info in wire.hook.store.blobs.scan()]
    assert max(ttls, default=0) < 2 * wire.hook._runtime.retention + wire.hook._runtime.grace + 3600


def test_a_steps_eta_adds_to_how_long_its_values_are_held(tasks, wire):
    """Values of a chain's step are held until the step is due, by countdown or by ETA."""
    due = datetime.now(timezone.utc) + timedelta(days=30)
    chain(tasks.echo.si(1), tasks.echo.si(BIG).set(eta=due)).apply_async()
    assert max(info.ttl for info in wire.hook.store.blobs.scan()) > 30 * 86400


@pytest.mark.parametrize("native", ("pickle", "yaml"))
def test_shared_and_cyclic_structures(native):
    """A list that contains itself, or is doubled 100 times, is sent as in plain Celery."""
    conf = {"task_serializer": native, "result_serializer": native}
    wire = make_wire(conf={**conf, "accept_content": [native]})

    @wire.app.task(name="depth", shared=False)
    def depth(value):
        levels = 0
        while value and levels < 200:
            assert value[0] is value[1]
            value, levels = value[0], levels + 1
        return levels

    doubled, cyclic = [], []
    for _ in range(100):
        doubled = [doubled, doubled]
    cyclic += [cyclic, cyclic, "x" * 2000]
    assert wire.run(depth, doubled) == 100
    assert wire.run(depth, cyclic) == 200

    @wire.app.task(name="same", shared=False)
    def same(value):
        return value

    result = wire.run(same, cyclic)
    assert result[0] is result
    assert wire.run(same, doubled)[0][0] is not None


def test_references_in_shared_and_cyclic_structures():
    """Under pickle, references resolve in lists nested 100 levels deep or in themselves, and shared
    objects stay shared.
    """
    conf = {"task_serializer": "pickle", "result_serializer": "pickle"}
    wire = make_wire(conf=conf)

    @wire.app.task(name="depth", shared=False)
    def depth(value):
        levels = 0
        while value[0] is not value and isinstance(value[0], list):
            assert value[0] is value[1]
            value, levels = value[0], levels + 1
        return [levels, value[-1] == BIG]

    ref = wire.hook.put(BIG)
    doubled, cyclic = [ref], []
    for _ in range(100):
        doubled = [doubled, doubled]
    cyclic += [cyclic, cyclic, ref]
    assert wire.run(depth, doubled) == [100, True]
    assert wire.run(depth, cyclic) == [0, True]
    assert max(info.ttl for info in wire.hook.store.blobs.scan()) > wire.hook._runtime.grace


def test_a_signature_in_lists_that_share_each_other():
    """Under pickle, a signature in lists nested 40 times, each twice in the next, is found once,
    and its reference is resolved.
    """
    wire = make_wire(conf={"task_serializer": "pickle"})
    seen = []

    @wire.app.task(name="see", shared=False)
    def see(value):
        for _ in range(40):
            assert value[0] is value[1]
            value = value[0]
        seen.append(value[0]["args"])

    nested = [see.s(wire.hook.put(BIG))]
    for _ in range(40):
        nested = [nested, nested]
    see.delay(nested)
    wire.work()
    assert seen == [(BIG,)]


def test_a_signature_in_a_cycle():
    """Under pickle, a list that contains itself and a signature is sent as in plain Celery, and a
    reference in the signature is resolved.
    """
    wire = make_wire(conf={"task_serializer": "pickle"})
    seen = []

    @wire.app.task(name="see", shared=False)
    def see(value):
        seen.append(value)

    for value in (1, wire.hook.put(BIG)):
        cycle = [see.s(value)]
        cycle.append(cycle)
        see.delay(cycle)
    wire.work()
    assert [list(found[0]["args"]) for found in seen] == [[1], [BIG]]
    assert all(found[1] is found for found in seen)


@pytest.mark.parametrize("native", ("json", "pickle", "msgpack", "yaml"))
def test_references_nested_too_deeply_are_refused(native):
    """A reference is refused where readers of the message would refuse the path to it."""
    wire = make_wire(conf={"task_serializer": native, "accept_content": [native, "json"]})
    echo = wire.app.task(name="echo", shared=False)(same)
    nested = [wire.hook.put(BIG)]
    for _ in range(253):
        nested = [nested]
    found = wire.run(echo, nested)
    while isinstance(found, list):
        (found,) = found
    assert found == BIG
    with pytest.raises(SerializationError, match=r"'echo', value.*nested so deeply"):
        echo.delay([nested])


@pytest.mark.parametrize("native", ("json", "pickle", "msgpack"))
def test_a_signature_nested_deeply_keeps_its_values(native):
    """A signature that no path can lead into travels as in plain Celery, with its values."""
    wire = make_wire(conf={"task_serializer": native, "accept_content": [native]}, threshold=0)
    seen = []

    @wire.app.task(name="see", shared=False)
    def see(value):
        while isinstance(value, list):
            (value,) = value
        seen.append(value["args"])

    for depth in (252, 253, 254, 260, 400):
        nested = see.s(BIG)
        for _ in range(depth):
            nested = [nested]
        see.delay(nested)
        wire.work()
        assert list(seen.pop()) == [BIG]


@pytest.mark.parametrize("native", ("json", "pickle", "msgpack", "yaml"))
@pytest.mark.parametrize(
    "within",
    (
        lambda value: value,
        lambda value: [value],
        lambda value: {"a": [value, *([n] for n in range(100))]},
        lambda value: {"a": {value}},
        lambda value: [[value]] * 2,
        lambda value: [[{value}]] * 2,
    ),
    ids=("argument", "list", "many", "set", "shared", "shared set"),
)
def test_a_lost_value_is_not_sent(native, within):
    """A placeholder of a value that was lost isn't sent to a task as text, wherever it is."""
    wire = make_wire(conf={"task_serializer": native, "accept_content": [native]})
    echo = wire.app.task(name="echo", shared=False)(same)
    lost = LostValue.of(wire.hook.put(BIG), BlobMissing("gone"))
    with pytest.raises(SerializationError, match="'echo', value"):
        echo.delay(within(lost))
    assert wire.take() is None


@pytest.mark.parametrize("native", ("json", "pickle", "msgpack"))
@pytest.mark.parametrize("others", (0, 100))
def test_a_signature_among_others_is_found(native, others):
    """A large value in a signature in a list is replaced, and not the list, however long it is."""
    wire = make_wire(conf={"task_serializer": native, "accept_content": [native]})
    echo = wire.app.task(name="echo", shared=False)(same)
    items = [[n] for n in range(others)]
    args, _, _ = wire.body(echo, [echo.s(BIG), *items])
    found, *rest = args[0]
    assert found["task"] == "echo"
    assert BIG not in found["args"]
    assert rest == items


@pytest.mark.parametrize("eager", (False, True))
@pytest.mark.parametrize("native", ("json", "msgpack", "yaml"))
def test_references_in_a_cycle_are_refused_elsewhere(native, eager):
    """Other serializers refuse references in a list that contains itself."""
    conf = {"task_serializer": native, "accept_content": [native], "task_always_eager": eager}
    wire = make_wire(conf=conf)
    echo = wire.app.task(name="echo", shared=False)(same)
    cyclic = [wire.hook.put(BIG)]
    cyclic.append(cyclic)
    with pytest.raises(SerializationError, match=r"'echo', value.*contains itself"):
        echo.delay(cyclic)


def test_an_immutable_argument_is_passed_on_by_its_reference(wire, tasks):
    """A task that passes on text that arrived by reference neither serializes nor uploads it."""

    @wire.app.task(name="passes", shared=False)
    def passes(text):
        tasks.kind.delay(text)

    text = "x" * 100_000
    before = wire.hook.counters.snapshot()["values_offloaded"]
    wire.run(passes, text)
    assert wire.hook.counters.snapshot()["values_offloaded"] == before + 1
    assert wire.calls.count("put") == 1


def test_a_passed_on_value_follows_the_next_tasks_options(wire, tasks):
    """Text that arrived by reference stays in the message if the next task's options say so."""

    @wire.app.task(name="passes", shared=False)
    def passes(text):
        tasks.never.delay(text)
        tasks.inline_all.delay(text)
        tasks.echo.apply_async((text,), offload={"threshold": 10**6})

    text = "x" * 100_000
    wire.run(passes, text)
    assert [body[0][0] == text for _, body in wire.sent] == [False, True, True, True]


@pytest.mark.parametrize("native", ("json", "pickle", "msgpack", "yaml"))
def test_a_task_may_have_an_argument_of_the_name_that_earlier_releases_added(native):
    """An argument ``__offload__`` of a message with references arrives, large or not."""
    wire = make_wire(conf={"task_serializer": native, "accept_content": [native]})
    seen = []

    @wire.app.task(name="named", shared=False)
    def named(value, **more):
        seen.append(more)

    for value in (7, BIG):
        named.delay(BIG, __offload__=value)
        wire.work()
    assert seen == [{"__offload__": 7}, {"__offload__": BIG}]
