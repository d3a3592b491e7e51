"""Publishing, reading, and storing from coroutines."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
import weakref
from contextlib import suppress
from contextvars import ContextVar

import numpy as np
import pytest
from celery import Task, chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import ResultSet
from celery.signals import before_task_publish
from kombu.utils.uuid import uuid

from offload import Ref
from offload.errors import InvalidRef
from offload.hooks.aio import results as watching
from offload.hooks.aio.threads import THREADS, call_in_thread
from tests.support.apps import current
from tests.support.processes import wait_until
from tests.support.servers import redis_client
from tests.support.sql_results import new_database
from tests.support.wire import make_wire

LARGE = "x" * 5000
PATIENCE = 150.0  # seconds, on a busy machine; a test may take 180
REDIS = pytest.param("redis", marks=pytest.mark.server)
BACKENDS = ("cache", "file", "database", "rpc", REDIS)


def make(backend="cache+memory://", **conf):
    wire = make_wire(conf={"result_backend": backend, **conf})
    app = wire.app

    @app.task(shared=False)
    def double(value):
        return value * 2

    @app.task(shared=False)
    def fail(value=None):
        raise KeyError("wrong")

    @app.task(shared=False)
    def total(parts):
        return sum(map(len, parts))

    @app.task(shared=False)
    def rows(count):
        return [[count] * 2000]

    wire.double, wire.fail, wire.total, wire.rows = double, fail, total, rows
    return wire


@pytest.fixture
def wire():
    return make()


@pytest.fixture(params=BACKENDS)
def each(request, tmp_path):
    """Return a wire for each kind of result backend."""
    urls = {
        "cache": lambda: "cache+memory://",
        "file": lambda: f"file://{tmp_path}",
        "database": lambda: new_database(tmp_path / "results.db"),
        "rpc": lambda: "rpc://",
    }
    if request.param == "redis":
        server = request.getfixturevalue("redis")
        return make(f"redis://{server.host}:{server.port}/5")
    return make(urls[request.param]())


def ours():
    """Return the names of the threads that serve coroutines."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("offload-async", "offload-results"))]


async def until(condition):
    """Let the event loop run until *condition* is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


class Block:
    """Keeps all threads busy until it is left."""

    async def __aenter__(self):
        self.free = threading.Event()
        self.busy = [0]

        def wait():
            self.busy[0] += 1
            self.free.wait(PATIENCE)

        self.calls = [asyncio.ensure_future(call_in_thread(wait)) for _ in range(THREADS)]
        await until(lambda: self.busy[0] == THREADS)

    async def __aexit__(self, *exc):
        self.free.set()
        await asyncio.gather(*self.calls)


def test_values_are_published_and_read_with_every_backend(each):
    """Concurrent calls return their own values, whichever way the backend tells results."""

    async def run():
        sent = [each.hook.adelay(each.double, LARGE + str(n)) for n in range(5)]
        results = await asyncio.gather(*sent)
        waiting = [asyncio.ensure_future(each.hook.aget(result, PATIENCE)) for result in results]
        await asyncio.sleep(0)
        each.work()
        return await asyncio.gather(*waiting)

    assert asyncio.run(run()) == [(LARGE + str(n)) * 2 for n in range(5)]


def test_results_of_blocking_calls_are_read(each):
    """A result that `delay` returned, ready or not, is read by `aget`, and the other way round."""

    async def read(result):
        return await each.hook.aget(result, PATIENCE)

    async def publish():
        return await each.hook.aapply_async(each.double, [LARGE])

    result = each.double.delay(LARGE)
    each.work()
    assert asyncio.run(read(result)) == LARGE * 2
    assert asyncio.run(read(result)) == LARGE * 2
    result = asyncio.run(publish())
    each.work()
    assert result.get(timeout=PATIENCE) == LARGE * 2


def test_canvas_is_published_and_read(each):
    """Chains, groups, groups of groups, and chords return what `delay` and `get` return."""
    double, total = each.double, each.total

    def calls():  # new ones, as older Celery can't call a chord twice
        yield chain(double.s(LARGE), double.s())
        yield group(double.s(LARGE), double.s([1]))
        yield group(group(double.s(LARGE), double.s(3)), double.s([2]))
        if each.app.backend.as_uri() != "rpc://":  # which has no chords
            yield chord([double.s(LARGE), double.s(LARGE)], total.s())

    def work():
        with current(each.app):  # in which older Celery looks for the group of a chord
            each.work()

    async def run(call):
        result = await each.hook.adelay(call)
        waiting = asyncio.ensure_future(each.hook.aget(result, PATIENCE))
        await asyncio.sleep(0)
        work()
        return await waiting

    def block(call):
        result = call.delay()
        work()
        return result.get(timeout=PATIENCE)

    found = [asyncio.run(run(call)) for call in calls()]
    assert found[:2] == [LARGE * 4, [LARGE * 2, [1, 1]]]
    assert found == [block(call) for call in calls()]


def test_reading_a_group_may_take_any_time(wire, monkeypatch):
    """Downloading the values of a group, which is ready, has no limit that the caller didn't give.

    Before Celery 5.7, `join` raises TimeoutError once its timeout has passed between two results.
    """
    limits, join = [], ResultSet.join

    def noted(result, timeout=None, **how):
        limits.append(timeout)
        return join(result, timeout=timeout, **how)

    monkeypatch.setattr(ResultSet, "join", noted)

    async def run():
        result = await wire.hook.adelay(group(wire.double.s(LARGE), wire.double.s(3)))
        wire.work()
        return await wire.hook.aget(result, PATIENCE)

    assert asyncio.run(run()) == [LARGE * 2, 6]
    assert limits == [None]


def test_failures_are_raised_or_returned(each):
    """The task's exception is raised, that of an earlier task in a chain or one in a group, too."""

    async def run(call, **how):
        result = await each.hook.aapply_async(call)
        each.work()
        return await each.hook.aget(result, PATIENCE, **how)

    for call in (
        each.fail.s(),
        chain(each.fail.s(), each.double.s()),
        group(each.double.s(1), each.fail.s()),
    ):
        with pytest.raises(KeyError, match="wrong"):
            asyncio.run(run(call))
    assert repr(asyncio.run(run(each.fail.s(), propagate=False))) == repr(KeyError("wrong"))
    found = asyncio.run(run(group(each.double.s(1), each.fail.s()), propagate=False))
    assert (found[0], type(found[1])) == (2, KeyError)


def test_a_failure_ends_the_wait_for_a_group(wire):
    """The first failure in a group is raised while other tasks have not been run."""

    async def run():
        result = await wire.hook.adelay(group(wire.fail.s(), wire.double.s(1)))
        wire.execute(wire.take())
        await wire.hook.aget(result)

    with pytest.raises(KeyError):
        asyncio.run(run())


def test_timeouts(wire):
    """A result that isn't ready in time raises Celery's TimeoutError; 0 looks once."""

    async def run(timeout):
        result = await wire.hook.adelay(wire.double, 1)
        with pytest.raises(CeleryTimeoutError):
            await wire.hook.aget(result, timeout)
        wire.work()
        return await wire.hook.aget(result, timeout=0)

    assert asyncio.run(run(0)) == 2
    assert asyncio.run(run(0.05)) == 2


def test_reading_a_reference_ends_in_time(wire):
    """A value that isn't read in time raises Celery's TimeoutError, as a result does."""

    async def run():
        ref = await wire.hook.aput(LARGE, retention="1h")
        async with Block():
            with pytest.raises(CeleryTimeoutError):
                await wire.hook.aget(ref, timeout=0.01)
        return await wire.hook.aget(ref, timeout=PATIENCE)

    assert asyncio.run(run()) == LARGE


def test_a_timeout_may_be_any_number(wire):
    """A negative timeout is none left, an infinite or huge one is no limit; others are refused."""

    async def run():
        result = await wire.hook.adelay(wire.double, 1)
        for none_left in (-1, -math.inf, -(10**400)):
            with pytest.raises(CeleryTimeoutError):
                await wire.hook.aget(result, none_left)
        for wrong in (math.nan, True, "soon"):
            with pytest.raises(ValueError, match="a timeout is a number of seconds"):
                await wire.hook.aget(result, wrong)
        wire.work()
        return [await wire.hook.aget(result, no_limit) for no_limit in (math.inf, 10**400)]

    assert asyncio.run(run()) == [2, 2]


def test_a_backend_that_hangs_outlasts_no_timeout(wire, monkeypatch):
    """A coroutine's wait ends, although the request about its result hasn't."""
    monkeypatch.setattr(watching, "_LATE", 0.1)
    free = threading.Event()

    def hang(backend, ids):
        free.wait(PATIENCE)
        return ()

    monkeypatch.setattr(watching, "_read_many", hang)

    async def run():
        with pytest.raises(CeleryTimeoutError, match="timed out"):
            await wire.hook.aget(wire.app.AsyncResult(uuid()), timeout=0)
        assert not free.is_set()

    try:
        asyncio.run(run())
    finally:
        free.set()


def test_an_app_without_a_result_backend_is_told():
    """`aget` raises what `get` raises if no result backend is configured."""
    wire = make("disabled://")

    async def run():
        await wire.hook.aget(await wire.hook.adelay(wire.double, 1))

    with pytest.raises(NotImplementedError, match="No result backend is configured"):
        asyncio.run(run())


def test_what_a_task_returns_for_its_call_is_returned(wire):
    """A task whose own ``apply_async`` returns no result may be called."""

    class Own(Task):
        def apply_async(self, *args, **options):
            super().apply_async(*args, **options)
            return "sent"

    @wire.app.task(base=Own, shared=False)
    def own(value):
        return value

    async def run():
        return await wire.hook.adelay(own, LARGE)

    assert asyncio.run(run()) == "sent"
    assert wire.execute(wire.take()) is not None


def test_a_thousand_results_wait_in_one_thread(wire, monkeypatch):
    """Waiting takes one thread, and one request of the backend asks for all results."""
    results = [wire.app.AsyncResult(uuid()) for _ in range(1000)]
    asked = []
    read = watching._read

    def count(backend, ids, *more):
        asked.append(ids)
        read(backend, ids, *more)

    monkeypatch.setattr(watching, "_read", count)

    async def run():
        before = threading.active_count()
        waiting = [asyncio.ensure_future(wire.hook.aget(result)) for result in results]
        await until(lambda: any(len(ids) == 1000 for ids in asked))
        assert ours().count("offload-results") == 1
        assert len(ours()) <= THREADS + 1
        assert threading.active_count() - before < 100  # others may start some meanwhile
        for number, result in enumerate(results):
            wire.app.backend.mark_as_done(result.id, number)
        return await asyncio.gather(*waiting)

    assert asyncio.run(run()) == [*range(1000)]
    assert len(ours()) <= THREADS + 1


def test_many_calls_need_few_threads(wire):
    """No more threads start than the limit, however many calls are made at once."""

    async def run():
        return await asyncio.gather(*(wire.hook.adelay(wire.double, n) for n in range(200)))

    assert len({result.id for result in asyncio.run(run())}) == 200
    assert len(wire.sent) == 200
    assert len([name for name in ours() if "async" in name]) <= THREADS


def test_the_event_loop_runs_while_calls_block(wire):
    """A call that blocks for as long as it likes doesn't keep the event loop from running."""

    async def run():
        async with Block():
            pending = asyncio.ensure_future(wire.hook.adelay(wire.double, 1))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not pending.done()
        return await pending

    asyncio.run(run())
    assert len(wire.sent) == 1


def test_a_call_that_is_cancelled_before_it_starts_sends_nothing_and_leaks_nothing(wire):
    """The arguments of a cancelled call are released at once, while all threads are busy."""

    async def run():
        async with Block():
            value = np.zeros(5000)
            gone = weakref.ref(value)
            pending = asyncio.ensure_future(wire.hook.adelay(wire.double, value))
            del value
            await asyncio.sleep(0)
            pending.cancel()
            with suppress(asyncio.CancelledError):
                await pending
            del pending
            await asyncio.sleep(0)  # until then, the event loop has the exception
            gc.collect()
            assert gone() is None

    asyncio.run(run())
    assert wire.sent == []


def test_a_call_that_is_cancelled_after_it_started_is_sent(wire):
    """The coroutine ends at once; the message is sent, under the id that the caller chose."""
    started, go = threading.Event(), threading.Event()

    def receive(**_):
        started.set()
        go.wait(PATIENCE)

    async def run():
        call = wire.hook.aapply_async(wire.double, [1], task_id="chosen")
        pending = asyncio.ensure_future(call)
        await until(started.is_set)
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
        go.set()

    before_task_publish.connect(receive, sender="tests.hooks.test_aio.double", weak=False)
    try:
        asyncio.run(run())
        wait_until(lambda: wire.take() is not None, "the message", PATIENCE)
    finally:
        before_task_publish.disconnect(receive, sender="tests.hooks.test_aio.double")
    assert [headers["id"] for headers, _ in wire.sent] == ["chosen"]


def test_a_cancelled_wait_is_forgotten(wire):
    """Nothing is kept of a result whose coroutine was cancelled, and nobody asks for it again."""

    async def run():
        result = wire.app.AsyncResult(uuid())
        gone = weakref.ref(result)
        pending = asyncio.ensure_future(wire.hook.aget(result))
        del result
        await asyncio.sleep(0.05)
        pending.cancel()
        with suppress(asyncio.CancelledError):  # pytest.raises keeps the traceback
            await pending
        del pending
        await until(lambda: gc.collect() is not None and gone() is None)

    asyncio.run(run())
    wait_until(lambda: not watching._watcher.get()._watches, "the thread forgets the result")


def test_context_variables_are_copied(wire):
    """Code that runs while publishing sees the caller's context, and can't change it."""
    name = ContextVar("name", default="none")
    seen = []

    def receive(**_):
        seen.append(name.get())
        name.set("changed")

    async def run():
        name.set("mine")
        await wire.hook.adelay(wire.double, 1)
        return name.get()

    before_task_publish.connect(receive, sender="tests.hooks.test_aio.double", weak=False)
    try:
        assert asyncio.run(run()) == "mine"
    finally:
        before_task_publish.disconnect(receive, sender="tests.hooks.test_aio.double")
    assert seen == ["mine"]


def test_a_task_is_the_parent_of_what_its_coroutines_publish(wire):
    """What a task publishes through an event loop has it as parent and root, as without one."""

    @wire.app.task(shared=False)
    def outer():
        asyncio.run(wire.hook.adelay(wire.double, 1))

    result = outer.delay()
    wire.work()
    headers = wire.sent[-1][0]
    assert (headers["parent_id"], headers["root_id"]) == (result.id, result.id)


def test_calls_within_calls_do_not_wait_for_each_other():
    """Eager tasks that run event loops of their own don't wait for threads that wait for them."""
    wire = make(task_always_eager=True)

    @wire.app.task(shared=False)
    def outer(value):
        async def run():
            return await wire.hook.aget(await wire.hook.adelay(wire.double, value))

        return asyncio.run(run())

    async def run():
        calls = [wire.hook.adelay(outer, n) for n in range(THREADS * 3)]
        return [await wire.hook.aget(result) for result in await asyncio.gather(*calls)]

    assert asyncio.run(run()) == [2 * n for n in range(THREADS * 3)]


def test_two_readers_get_values_of_their_own(each):
    """Coroutines that wait for one result through two objects don't share a mutable value."""

    async def run():
        result = await each.hook.adelay(each.rows, 1)
        other = type(result)(result.id, app=each.app, backend=result.backend)
        waiting = asyncio.gather(each.hook.aget(result, PATIENCE), each.hook.aget(other, 60))
        await asyncio.sleep(0)
        each.work()
        return await waiting

    one, two = asyncio.run(run())
    assert one == two == [[1] * 2000]
    assert one is not two
    assert one[0] is not two[0]


@pytest.mark.server
def test_publishing_subscribes_to_nothing(redis):
    """Results that are polled for aren't subscribed to, so no messages about them pile up."""
    wire = make(f"redis://{redis.host}:{redis.port}/5")

    async def run():
        calls = [wire.double.s(n) for n in range(10)]
        sent = asyncio.gather(*map(wire.hook.adelay, calls))
        return [*await sent, *(await wire.hook.adelay(group(calls))).results]

    results = asyncio.run(run())
    with redis_client(redis, db=5) as client:
        channels = {channel.decode() for channel in client.pubsub_channels("celery-task-meta-*")}
    assert not {f"celery-task-meta-{result.id}" for result in results} & channels


def test_the_callers_backend_stays_its_own(wire):
    """The backend that offload's threads share isn't the one of the event loop's thread."""

    async def run():
        return await wire.hook.adelay(wire.double, 1)

    before = wire.app.backend, wire.app.thread_oid
    asyncio.run(run())
    assert (wire.app.backend, wire.app.thread_oid) == before


def test_a_result_that_cannot_be_read_hinders_no_other(wire):
    """One corrupt entry in the backend is its own reader's error only."""

    async def run():
        good, bad = [wire.app.AsyncResult(uuid()) for _ in range(2)]
        wire.app.backend.mark_as_done(good.id, "good")
        wire.app.backend.set(wire.app.backend.get_key_for_task(bad.id), b"\xff no JSON")
        return await asyncio.gather(
            wire.hook.aget(good, PATIENCE), wire.hook.aget(bad, 60), return_exceptions=True
        )

    good, bad = asyncio.run(run())
    assert good == "good"
    assert isinstance(bad, Exception)
    assert not isinstance(bad, CeleryTimeoutError)


def test_a_backend_that_is_unavailable_for_a_while_is_asked_again(wire, monkeypatch):
    """A wait outlasts a lost connection to the result backend."""
    read, lost = watching._read_many, []

    def losing(backend, ids):
        if len(lost) < 3:
            lost.append(ids)
            raise ConnectionError("lost")
        return read(backend, ids)

    monkeypatch.setattr(watching, "_read_many", losing)

    async def run():
        result = wire.app.AsyncResult(uuid())
        wire.app.backend.mark_as_done(result.id, "there")
        return await wire.hook.aget(result)

    assert asyncio.run(run()) == "there"
    assert len(lost) == 3


def test_a_backend_that_stays_unavailable_raises_its_error(wire, monkeypatch):
    """Coroutines get the backend's error once it has lasted, not a wait without end."""
    monkeypatch.setattr(watching, "_TOLERATED", 0.0)

    def losing(backend, ids):
        raise ConnectionError("lost")

    monkeypatch.setattr(watching, "_read_many", losing)

    async def run():
        await wire.hook.aget(wire.app.AsyncResult(uuid()))

    with pytest.raises(ConnectionError, match="lost"):
        asyncio.run(run())


def test_values_are_stored_and_read_by_reference(wire):
    """`aput` and `aget` are `put` and `get`, with their errors."""

    async def run():
        ref = await wire.hook.aput([LARGE])
        return ref, await wire.hook.aget(ref)

    ref, value = asyncio.run(run())
    assert isinstance(ref, Ref)
    assert value == [LARGE] == wire.hook.get(ref)
    with pytest.raises(InvalidRef):
        asyncio.run(wire.hook.aget(Ref.unbound("offload:1?d=b3")))


def test_errors_of_publishing_reach_the_caller(wire):
    """What `delay` raises, `adelay` raises; a wrong source is a TypeError that names its type."""

    async def publish():
        await wire.hook.adelay(wire.double, 1, 2, 3)

    with pytest.raises(TypeError):
        asyncio.run(publish())
    with pytest.raises(TypeError, match="got a str"):
        asyncio.run(wire.hook.aget("id"))


def test_tasks_are_published_by_name(wire):
    """A task's name is enough, for processes that don't import the tasks."""

    async def run():
        result = await wire.hook.adelay(wire.double.name, LARGE)
        wire.work()
        return await wire.hook.aget(result, PATIENCE)

    assert asyncio.run(run()) == LARGE * 2
