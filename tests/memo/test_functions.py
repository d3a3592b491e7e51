"""`memoize`, with a store alone and with an app."""

from __future__ import annotations

import copy
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
    """Wrong arguments of `memoize`, coroutines, and methods raise ConfigurationError."""
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


def test_coroutines_and_methods_are_refused(store):
    """Coroutine functions, generator functions, and methods can't be memoized."""

    async def coroutine():
        pass

    def generator():
        yield

    for each in (coroutine, generator):
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
