"""Tasks and pools that bypass Celery's own call path get values or don't start."""

from __future__ import annotations

import importlib.util
import traceback

import pytest
from celery import Task
from celery.app import trace

from offload.errors import BlobMissing, ConfigurationError, InvalidRef
from offload.hooks import execute as hooks
from tests.guard import guard_app
from tests.support.processes import wait_until
from tests.support.wire import make_wire

BIG = "b" * 60_000

server = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(180)]


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


@pytest.fixture(scope="class", params=("prefork", "threads"))
def working(request, bench):
    with bench.worker("-P", request.param, "-c", "2", name=request.param) as process:
        yield process


class TestBatches:
    pytestmark = server

    @pytest.mark.parametrize("native", guard_app.SERIALIZERS)
    @pytest.mark.parametrize(
        "name", (pytest.param("real_batch", marks=needs("celery_batches")), "local_batch")
    )
    def test_a_custom_strategy(self, bench, working, name, native):
        """A task whose Strategy hands over requests finds values in them, in every serializer and
        pool.
        """
        task = bench.app.tasks[name]
        sent = [
            task.apply_async((BIG,), {"rows": [1, BIG + n]}, serializer=native) for n in ("a", "b")
        ]
        wait_until(lambda: all(map(bench.entered, sent)), "the batch ran", 60)
        for each in sent:
            assert bench.entered(each) == [["str 60000", "list 2"]]

    @pytest.mark.parametrize(
        "name", (pytest.param("real_batch", marks=needs("celery_batches")), "local_batch")
    )
    def test_one_value_of_a_batch_is_lost(self, bench, working, name):
        """A request with a lost value fails alone; the others of its batch run."""
        task = bench.app.tasks[name]
        lost = task.delay(BIG + name)
        bench.lose(BIG + name)
        kept = task.delay(BIG + "kept")
        wait_until(lambda: bench.entered(kept), "the rest of the batch ran", 60)
        bench.wait(lost)
        assert isinstance(lost.result, BlobMissing)
        assert bench.entered(lost) == []


@needs("celery_aio_pool")
class TestAnotherTracer:
    pytestmark = server

    def test_celery_aio_pool(self, bench):
        """A pool that replaces Celery's tracer runs tasks, also coroutines, on values; none starts
        with a lost one.
        """
        lost = bench.app.tasks["size"].delay(BIG + "lost")
        bench.lose(BIG + "lost")
        with bench.worker(
            "-P", "custom", name="aio",
            env={
                "CELERY_CUSTOM_WORKER_POOL": "celery_aio_pool.pool:AsyncIOPool",
                "CPA_AUTO_PATCH": "1",
            },
        ):  # fmt: skip
            for name in ("size", "coroutine"):
                result = bench.app.tasks[name].delay(BIG)
                assert bench.wait(result).get() == len(BIG)
                assert bench.entered(result) == [["str 60000"]]
            assert isinstance(bench.wait(lost).result, BlobMissing)
            assert bench.entered(lost) == []


@pytest.fixture
def wire():
    made = make_wire()
    made.entered = []

    @made.app.task(name="length", shared=False)
    def length(value, other=None):
        made.entered.append(type(value))
        return len(value)

    return made


def made_by(wire, tracer):
    """Make the app's tasks use *tracer*, like a pool that replaces Celery's."""
    for task in wire.app.tasks.values():
        hooks.guard(wire.hook._runtime, task)
        task.__trace__ = tracer(task)


def foreign(task):
    return trace.build_tracer._offload_original(task.name, task, app=task.app)


def test_a_workers_protection_is_not_a_tasks_own_call(wire, monkeypatch):
    """Celery protects its own ``__call__`` in workers; a task that doesn't define one is still
    called by ``run``, as tracers do that undo the protection later.
    """
    monkeypatch.setattr(Task, "__call__", lambda self, *args: self.run(*args))
    task = wire.app.tasks["length"]
    assert trace.task_has_custom(task, "__call__")
    hooks.guard(wire.hook._runtime, task)
    monkeypatch.undo()
    assert not trace.task_has_custom(task, "__call__")
    assert wire.run(task, BIG) == len(BIG)


def test_another_tracer_is_hooked(wire):
    """A worker hooks a tracer that has replaced Celery's when it starts."""
    made_by(wire, foreign)
    hooks.check_tracers(wire.app)
    assert wire.run(wire.app.tasks["length"], BIG, other=BIG) == len(BIG)
    assert wire.entered == [str]


def test_a_tracer_that_cannot_be_hooked(wire):
    """A coroutine in place of Celery's tracer keeps the worker from starting; the error names the
    task, the tracer, and the pool.
    """

    async def traced(*_args): ...

    made_by(wire, lambda _task: traced)
    with pytest.raises(ConfigurationError, match=r"task '.*traced.*pool of\.somebody"):
        hooks.check_tracers(wire.app, "pool of.somebody")


@pytest.mark.parametrize("native", ("json", "pickle"))
def test_a_tracer_that_is_replaced_later(wire, native):
    """The function receives values, and large results are stored, even if a tracer replaced
    offload's after the worker started.
    """
    made_by(wire, foreign)
    result = wire.app.tasks["length"].apply_async((BIG,), {"other": BIG}, serializer=native)
    assert wire.get(result) == len(BIG)
    assert wire.entered == [str]


def test_no_function_starts_without_its_value(wire):
    """With another tracer, too, a lost value fails the task without starting its function."""
    made_by(wire, foreign)
    result = wire.app.tasks["length"].delay(BIG)
    wire.hook.store.blobs.delete([wire.hook.put(BIG).digest])
    with pytest.raises(BlobMissing):
        wire.get(result)
    assert wire.entered == []


class Opaque:
    def __init__(self, value):
        self.inner = {"deep": [value]}


def test_references_in_objects_that_only_the_strategy_knows(wire):
    """However a custom Strategy passes a message's arguments, they are values; data shaped like a
    reference stays data.
    """
    task = wire.app.tasks["length"]
    task.Strategy = "somebody:strategy"
    hooks.guard(wire.hook._runtime, task)
    ref = wire.hook.put(BIG)
    data = {"__type__": "offload", "__value__": "offload:1?n=1&m=" + "0" * 32}
    seen = []
    task.run = hooks._guarded_run(
        wire.hook._runtime, task, lambda value: seen.append(value.inner["deep"][0])
    )
    for given in (ref, ref.__json__(), data):
        task(Opaque(given))
    assert seen == [BIG, BIG, data]


def test_arguments_that_cannot_be_searched(wire):
    """If references can't be found in what a Strategy passes, the task fails; the error says what
    to do, without a value.
    """
    task = wire.app.tasks["length"]
    task.Strategy = "somebody:strategy"
    hooks.guard(wire.hook._runtime, task)
    with pytest.raises(ConfigurationError, match="task 'length' has its own Strategy") as caught:
        task(Unpicklable())
    assert "hunter', 2" not in "".join(traceback.format_exception(caught.value))
    assert wire.entered == []


class Unpicklable:
    def __reduce__(self):
        raise ValueError("hunter", 2)


def test_a_malformed_header(wire):
    """With another tracer, too, a malformed header raises InvalidRef."""
    made_by(wire, foreign)
    wire.app.tasks["length"].delay(BIG)
    message = wire.take()
    body = message.decode()
    body[2]["offload"]["refs"] = 5
    message.body, message.content_type = body, None
    message._decoded_cache = None
    failed, info, _ = wire.execute(message)
    assert failed
    assert type(info.exception) is InvalidRef or "InvalidRef" in repr(info.exception)
    assert wire.entered == []
