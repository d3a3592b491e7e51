"""`memoize`, with a store alone and with an app."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import threading

import numpy as np
import pytest
from celery import Celery

from offload import ConfigurationError, Offload, StoreUnavailable, memoize
from offload.memo import forget, forget_all
from offload.memo.records import list_records
from offload.stores.memory import MemoryStore

VALUES = (1, (1, 2), {"a": {3}}, np.arange(50_000), b"x" * 100_000, [(None,)], "text", 2**70)


@pytest.fixture
def store():
    return MemoryStore("functions")


@pytest.fixture
def square(store):
    """Return a function whose calls are listed in ``runs``."""

    @memoize(store, ttl=60, version="1")
    def square(x, power=2):
        square.runs.append(x)
        return x**power

    square.runs = []
    return square


def test_equal_calls_compute_once(square):
    """A second equal call, by position, keyword, or default, returns the first one's result."""
    assert [square(3), square(x=3), square(3, 2), square(3, power=2)] == [9] * 4
    assert square(3, 3) == 27
    assert square(3.0) == 9
    assert square.runs == [3, 3, 3.0]
    assert (square.__name__, square.__module__) == ("square", __name__)


@memoize(MemoryStore("pickled"), version="1")
def pickled(x):
    return x


def test_a_function_is_pickled_and_copied_by_name():
    """A remembered function is pickled and copied by name, so that process pools can call it."""
    assert pickle.loads(pickle.dumps(pickled)) is pickled
    assert copy.copy(pickled) is copy.deepcopy(pickled) is pickled


@pytest.mark.parametrize("value", VALUES, ids=[type(value).__name__ for value in VALUES])
def test_results_are_exact_and_private(store, value):
    """A result comes back with its exact types, and each caller has an object of its own."""
    runs = []

    @memoize(store, version="1")
    def give():
        runs.append(1)
        return copy.deepcopy(value)

    for _ in range(3):
        found = give()
        assert type(found) is type(value)
        np.testing.assert_equal(found, value)
        if isinstance(found, np.ndarray):
            found[:] = 0
    assert len(runs) == 1


def test_code_counts_without_a_version(store):
    """Functions of one name with other code, or another scope, don't share results."""

    def make(n, **options):
        @memoize(store, **options)
        def give(x):
            return x + n

        return give

    assert [make(1)(1), make(2)(1), make(1)(1)] == [2, 3, 2]
    assert len(list(list_records(store))) == 2
    make(1, scope="tenant")(1)
    assert len(list(list_records(store))) == 3


def test_forgetting(square):
    """After `forget` or `forget_all`, calls compute again."""
    for each in (square.forget, lambda x: forget(square, x)):
        square(2)
        assert each(2) is True
        assert each(2) is False
    square(2)
    square(4)
    assert forget_all(square) == 2
    square(2)
    assert square.forget_all() == 1
    assert square.runs == [2, 2, 2, 4, 2]


def test_what_is_not_remembered(store):
    """Errors, generators, and iterators aren't remembered, and block nobody."""
    runs = []

    @memoize(store, version="1")
    def give(kind):
        runs.append(kind)
        if kind == "error":
            raise ValueError(kind)
        return iter([1, 2])

    for _ in range(2):
        with pytest.raises(ValueError, match="error"):
            give("error")
        assert list(give("iterator")) == [1, 2]
    assert len(runs) == 4
    assert not list(list_records(store))
    assert not [name for name in store.leases.names("memo/") if store.leases.read(name)]


def test_faults_only_cost_the_saving(store, square, monkeypatch):
    """Arguments that can't be hashed, and a store that is down, compute every time."""
    assert memoize(store, version="1")(len)([1]) == 1
    for _ in range(2):
        with pytest.raises(TypeError):
            square(object())
    with monkeypatch.context() as patch:
        for name in ("read", "swap"):
            patch.setattr(store.pointers, name, _down)
        assert [square(2), square(2)] == [4, 4]
    assert len(square.runs) == 4
    assert square(2) == 4


def _down(*_given):
    raise StoreUnavailable("down")


def test_equal_calls_of_threads_compute_once(store):
    """Of equal calls in several threads, one computes; the others wait and get its result."""
    go, started, runs = threading.Event(), threading.Event(), []

    @memoize(store, version="1", lease=20)
    def give(x):
        runs.append(x)
        started.set()
        assert go.wait(20)
        return x

    found = []
    threads = [threading.Thread(target=lambda: found.append(give(1))) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert started.wait(20)
    go.set()
    for thread in threads:
        thread.join(20)
    assert (found, runs) == ([1] * 5, [1])


@pytest.mark.parametrize(
    "options",
    (
        {"ttl": 0},
        {"ttl": "1"},
        {"lease": -1},
        {"ignore": ("missing",)},
        {"ignore": "x"},
        {"key": "x"},
        {"version": 2},
    ),
)
def test_wrong_arguments_are_refused(store, options):
    """Wrong arguments of `memoize` raise ConfigurationError."""
    with pytest.raises(ConfigurationError, match="memoize"):
        memoize(store, **options)(lambda x: x)


@pytest.mark.parametrize("given", ("memory://", lambda x: x), ids=("url", "function"))
def test_what_is_no_store_is_refused(given):
    """`memoize` without a store, as with a URL or as a bare decorator, says what to write."""
    with pytest.raises(ConfigurationError, match=r"@memoize\(open_store\("):
        memoize(given)


def test_a_bare_decorator_is_refused():
    """`Offload.memoize` without parentheses says to add them."""
    hook = Offload(Celery("bare", broker="memory://", set_as_current=False), store="memory://bare")
    with pytest.raises(ConfigurationError, match=r"@offload\.memoize\(\)"):
        hook.memoize(lambda x: x)


def test_a_task_is_refused():
    """`memoize` on top of `@app.task`, whose messages it would never see, says what to write."""
    app = Celery("tasks", broker="memory://", set_as_current=False)
    hook = Offload(app, store="memory://tasks")

    def same(x):
        return x

    with pytest.raises(ConfigurationError, match="above @memoize"):
        hook.memoize()(app.task(same, name="under", shared=False))
    task = app.task(hook.memoize(version="1")(same), name="above", shared=False)
    assert task(5) == 5


def test_generators_and_methods_are_refused(store):
    """Generator functions and methods can't be memoized."""

    async def asynchronous():
        yield

    def generator():
        yield

    for each in (asynchronous, generator):
        with pytest.raises(ConfigurationError, match="memoize"):
            memoize(store)(each)

    class Class:
        @memoize(store)
        def method(self):
            pass

    with pytest.raises(ConfigurationError, match="method"):
        Class().method()


def test_an_app_memoizes_in_its_store():
    """`Offload.memoize` uses the app's store, scope, counters, and expiry of results."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.result_expires = 1234
    hook = Offload(app, store="memory://memoize-app")
    runs = []

    @hook.memoize(version="1", ignore=("trace",))
    def give(x, trace=None):
        runs.append(x)
        return x

    assert [give(1), give(1, trace=object())] == [1, 1]
    assert runs == [1]
    [record] = list_records(hook.store)
    assert (record.scope, round(record.until - record.created)) == ("shop", 1234)
    counts = hook.counters.snapshot()
    assert (counts["memo_hits"], counts["memo_misses"]) == (1, 1)
    assert hook.memo.forget(give, 1) is True
    assert hook.memo.forget_all(give) == 0


# -- coroutine functions


class Slow:
    """A memoized coroutine function whose calls end when `ended` is set."""

    def __init__(self, store):
        self.runs, self.begun, self.ended = [], asyncio.Event(), asyncio.Event()

        @memoize(store, ttl=60, version="1")
        async def wait(x):
            self.runs.append(x)
            self.begun.set()
            await self.ended.wait()
            if x is None:
                raise LookupError
            return [x]

        self.wait = wait


def test_equal_calls_of_a_coroutine_function_compute_once(store):
    """Of calls that are awaited at once, one computes, also if more wait than there are threads.
    Meanwhile the event loop goes on, and each caller has an object of its own.
    """

    async def main():
        slow = Slow(store)
        assert inspect.iscoroutinefunction(slow.wait.__call__)
        assert asyncio.iscoroutinefunction(slow.wait)
        calls = [asyncio.ensure_future(slow.wait(1)) for _ in range(50)]
        await slow.begun.wait()
        assert [await asyncio.sleep(0, n) for n in range(3)] == [0, 1, 2]
        slow.ended.set()
        found = await asyncio.gather(*calls)
        assert found == [[1]] * 50
        assert len({*map(id, found)}) == 50
        assert await slow.wait(x=1) == [1]
        assert await slow.wait(2) == [2]
        assert slow.runs == [1, 2]
        assert slow.wait.forget(1)

    asyncio.run(main())


@pytest.mark.parametrize("how", ("error", "cancelled"))
def test_a_coroutine_that_ends_without_a_result_lets_others_compute(store, how):
    """If a coroutine raises or is cancelled, the call that waits for it computes."""

    async def main():
        slow = Slow(store)
        argument = None if how == "error" else 1
        first = asyncio.ensure_future(slow.wait(argument))
        await slow.begun.wait()
        second = asyncio.ensure_future(slow.wait(argument))
        if how == "cancelled":
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
        slow.ended.set()
        found = await asyncio.gather(first, second, return_exceptions=True)
        if how == "error":
            assert [*map(type, found)] == [LookupError] * 2
        else:
            assert found[1] == [1]
        assert len(slow.runs) == 2

    asyncio.run(main())
    assert not list(store.leases.names("memo/"))


def test_a_call_that_is_cancelled_while_it_asks_gives_its_lease_back(store):
    """A lease that is granted to a call that was cancelled meanwhile is released."""
    asked, granted = threading.Event(), threading.Event()
    acquire = store.leases.acquire

    def late(*given):
        asked.set()
        assert granted.wait(10)
        return acquire(*given)

    async def main():
        slow = Slow(store)
        store.leases.acquire = late
        call = asyncio.ensure_future(slow.wait(1))
        await asyncio.to_thread(asked.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        store.leases.acquire = acquire
        granted.set()
        slow.ended.set()
        assert await slow.wait(1) == [1]  # waits until the lease is given back
        assert slow.runs == [1]

    asyncio.run(main())
    assert not list(store.leases.names("memo/"))


def test_a_coroutine_function_works_without_its_store(store, monkeypatch):
    """If the store fails, a coroutine function runs as without memo."""

    def broken(*_given):
        raise StoreUnavailable("down")

    async def main():
        slow = Slow(store)
        slow.ended.set()
        monkeypatch.setattr(store.pointers, "read", broken)
        assert [await slow.wait(1), await slow.wait(1)] == [[1]] * 2
        assert slow.runs == [1, 1]

    asyncio.run(main())
