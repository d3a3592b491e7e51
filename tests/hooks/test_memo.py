"""Memo tasks, with a broker, a worker, and a store within this process."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Task, chain, states
from celery.exceptions import Ignore, Reject
from celery.worker.consumer.consumer import Consumer
from celery.worker.request import Request
from kombu.utils.limits import TokenBucket

import offload as package
from offload import ConfigurationError, StoreUnavailable
from offload.hooks import execute, prefetch, requests
from offload.hooks import memo as memo_hooks
from offload.hooks.message import EMBED
from offload.memo import forget, forget_all
from offload.memo.records import list_records, read_record, write_record
from tests.support.wire import make_wire

ROWS = list(range(5000))
LARGE = np.arange(50_000)


class Memo:
    """A wire, and memo tasks whose runs are listed."""

    def __init__(self, wire):
        self.wire = wire
        self.runs = []
        self.inside = []

    def task(self, function=lambda *args, **kwargs: [args, kwargs], **options):
        """Return a memo task that does as *function*."""
        celery = {key: options.pop(key) for key in ("base", "bind", "acks_late") if key in options}
        options = {"memo": 3600, "version": "1", **options}

        @functools.wraps(function)
        def run(*args, **kwargs):
            self.runs.append((args, kwargs))
            for each in self.inside:
                each()
            return function(*args, **kwargs)

        run.__name__ = "run"
        made = self.wire.app.task(name="run", shared=False, offload=options, **celery)(run)
        self.wire.app.finalize()
        return made

    def counts(self):
        """Return the counters of memo tasks that aren't zero, except durations."""
        counts = self.wire.hook.counters.snapshot()
        counts.pop("memo_milliseconds_saved")
        return {
            key.removeprefix("memo_"): n
            for key, n in counts.items()
            if n and key.startswith("memo_")
        }

    @property
    def records(self):
        return list(list_records(self.wire.hook.store))


@pytest.fixture
def memo():
    return Memo(make_wire())


def small(x, factor=1):
    return [len(x) if isinstance(x, list) else x, factor]


# -- hits


def test_a_hit_runs_and_downloads_nothing(memo):
    """An equal call returns the first call's result; its argument isn't read, its function isn't
    called, and the store is asked once for the record.
    """
    task = memo.task(small)
    assert memo.wire.run(task, ROWS) == [5000, 1]
    for call in ((ROWS,), (ROWS, 1)):
        result = task.delay(*call)
        memo.wire.calls.clear()
        assert memo.wire.get(result) == [5000, 1]
        assert memo.wire.calls == ["read", "release"]
    assert memo.wire.run(task, x=ROWS) == [5000, 1]
    assert len(memo.runs) == 1
    assert memo.counts() == {"hits": 3, "misses": 1}
    assert memo.wire.run(task, ROWS, 2) == [5000, 2]
    assert len(memo.runs) == 2


def test_a_time_limit_while_a_lease_is_released_changes_no_outcome(memo, monkeypatch):
    """A soft time limit that is reached after a task has failed isn't raised in its place."""
    flights = memo.wire.hook._runtime.part(memo_hooks.Memos).results.flights

    def abandon(_computation):
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(flights, "abandon", abandon)
    memo.task(len).delay(1)
    _failed, outcome, _seconds = memo.wire.execute(memo.wire.take())
    assert isinstance(outcome.exception, TypeError)


def test_saved_time_is_that_of_the_computation(memo, monkeypatch):
    """A hit counts the whole milliseconds that its computation took."""
    now = iter(n * 1.2345 for n in range(99))
    monkeypatch.setattr(execute.time, "perf_counter", lambda: next(now))
    task = memo.task(small)
    for _ in range(3):
        memo.wire.run(task, 1)
    assert memo.wire.hook.counters.snapshot()["memo_milliseconds_saved"] == 2 * 1234


@pytest.mark.parametrize("value", (LARGE, b"x" * 100_000, ROWS, {"rows": ROWS}), ids=type)
def test_a_large_result_is_returned_by_reference(memo, value):
    """A hit passes on the reference of a large result, without reading it; its reader gets it."""
    task = memo.task(lambda: value)
    np.testing.assert_equal(memo.wire.run(task), value)
    result = task.delay()
    memo.wire.calls.clear()
    memo.wire.work()
    assert {"put", "get"}.isdisjoint(memo.wire.calls)
    np.testing.assert_equal(result.get(timeout=10), value)
    assert len(memo.runs) == 1
    assert memo.records[0].size < 1000


@pytest.mark.parametrize("options", ({"results": False}, {"enabled": False}, {"threshold": 0}))
@pytest.mark.parametrize("value", (ROWS, [1], None, "text", 2**70, {"a": (1, 2)}), ids=type)
def test_results_arrive_as_without_memo(memo, options, value):
    """Whatever the other options, a hit's result is what a miss's is."""
    task = memo.task(lambda: value, **options)
    first = memo.wire.run(task)
    assert memo.wire.run(task) == first
    assert len(memo.runs) == 1


def test_a_chain_receives_what_a_task_returned(memo):
    """The next task of a chain receives a hit's result, small or large, with its exact types."""
    memo.wire.app.conf.update(task_serializer="pickle", result_serializer="pickle")
    task = memo.task(lambda n: tuple(range(n)))

    @memo.wire.app.task(shared=False)
    def show(value):
        return type(value), len(value)

    for n in (3, 3, 5000, 5000):
        assert memo.wire.get(chain(task.s(n), show.s())()) == (tuple, n)
    assert len(memo.runs) == 2


def test_each_caller_has_a_value_of_its_own(memo):
    """Hooks of two hits get equal results that aren't the same object, and may change them."""
    seen = []

    class Base(Task):
        def on_success(self, retval, task_id, args, kwargs):
            seen.append((list(retval), args))
            retval.append("changed")

    task = memo.task(small, base=Base)
    for _ in range(3):
        memo.wire.run(task, ROWS)
    assert seen == [([5000, 1], [ROWS])] * 3
    assert len(memo.runs) == 1


@pytest.mark.parametrize("hook", ("before_start", "on_success", "after_return"))
def test_own_hooks_receive_values(memo, hook):
    """A task's own hooks receive values, of a hit too: then its arguments are read."""
    seen = []
    body = {hook: lambda self, *given: seen.append(given)}
    task = memo.task(lambda x: x, base=type("Base", (Task,), body))
    memo.wire.run(task, ROWS)
    np.testing.assert_equal(memo.wire.run(task, ROWS), ROWS)
    assert len(memo.runs) == 1
    first, second = seen
    assert [each for each in first if not isinstance(each, str)] == [
        each for each in second if not isinstance(each, str)
    ]


# -- what counts


def test_options_decide_what_counts(memo):
    """Parameters in ``inline`` and ``memo_ignore`` don't count."""
    task = memo.task(lambda a, trace=None, token=None: a, inline=("token",), memo_ignore=("trace",))
    memo.wire.run(task, a=1, trace=1, token=1)
    memo.wire.run(task, a=1, trace=2, token=2)
    assert len(memo.runs) == 1
    memo.wire.run(task, a=2)
    assert len(memo.runs) == 2


def test_a_key_function_sees_references(memo):
    """A key function receives a large argument as a reference, and None means: don't remember."""
    seen = []

    def key(arguments):
        seen.append(arguments["rows"])
        return arguments["day"]

    task = memo.task(lambda rows, day=None: day, memo_key=key)
    for day in ("mon", "mon", "tue", None, None):
        assert memo.wire.run(task, ROWS, day=day) == day
    assert len(memo.runs) == 4
    assert all(isinstance(each, package.Ref) for each in seen)
    assert "uncached" not in memo.counts()


def test_scopes_and_calls_do_not_share(memo):
    """Results are shared within a scope, which a call may choose; a call may turn memo off."""
    task = memo.task(small)
    for options in (None, {"memo_scope": "a"}, {"memo_scope": "b"}, {"memo_scope": "a"}, None):
        task.apply_async((1,), offload=options)
    memo.wire.work()
    assert len(memo.runs) == 3
    task.apply_async((1,), offload={"memo": False})
    memo.wire.work()
    assert len(memo.runs) == 4
    assert {each.scope for each in memo.records} == {memo.wire.app.main, "=a", "=b"}
    assert forget_all(task) == 3


def test_apps_of_other_names_do_not_share():
    """The scope "app" is the app's: tasks of the same name in other apps have other results."""
    for n in range(2):
        memo = Memo(make_wire(store="memory://memo-shared"))
        assert memo.wire.run(memo.task(lambda n=n: n)) == n


def test_changed_code_is_computed_again(memo):
    """A task whose code has changed computes again."""
    results = []
    for add in (1, 2, 1):
        made = Memo(make_wire(store="memory://memo-code"))
        made.wire.app.main = "same"

        def run(x, add=add):
            return x + add

        task = made.wire.app.task(name="run", shared=False, offload={"memo": 60})(run)
        made.wire.app.finalize()
        results.append((made.wire.run(task, 1), made.counts()))
    assert results == [(2, {"misses": 1}), (3, {"misses": 1}), (2, {"hits": 1})]


@pytest.mark.parametrize("options", ({"bind": True}, {"autoretry_for": (OSError,)}))
def test_code_is_the_users(memo, options):
    """The code of bound tasks, and of those that Celery wraps, is that of the user's function."""
    hook = memo.wire.hook

    def first(self=None, x=1):
        return x

    def second(self=None, x=1):
        return -x

    keys = set()
    for function in (first, second):
        task = memo.wire.app.task(
            name=function.__name__, shared=False, offload={"memo": 60}, **options
        )(function)
        memo.wire.app.finalize()
        assert memo.wire.run(task, x=3) in (3, -3)
        keys.add(hook.memo._learn(task).function.code(hook.classes.scope))
    assert len(keys) == 2
    assert memo.counts() == {"misses": 2}


@pytest.mark.parametrize(
    "options",
    (
        {"memo": -1},
        {"memo": "1"},
        {"memo": float("nan")},
        {"version": 2},
        {"version": ""},
        {"memo_ignore": "trace"},
        {"memo_ignore": ("missing",)},
        {"memo_key": "key"},
        {"memo_scope": ""},
        {"memo_lease": 0},
        {"wait": "sleep"},
    ),
)
def test_wrong_options_are_refused(memo, options):
    """A wrong option of a task raises ConfigurationError that names task and option."""

    @memo.wire.app.task(name="wrong", shared=False, offload={"memo": 60, **options})
    def wrong(x):
        pass

    memo.wire.app.finalize()
    with pytest.raises(ConfigurationError, match=rf"'wrong'.*{next(iter(options))}"):
        memo.wire.hook._runtime.check_task("wrong")


@pytest.mark.parametrize("name", ("version", "memo_ignore", "memo_lease", "memo_key"))
def test_calls_cannot_have_options_of_tasks(memo, name):
    """A call can't change what its arguments or its code count as."""
    value = {"version": "2", "memo_ignore": ("x",), "memo_lease": 5, "memo_key": len}[name]
    task = memo.task(small)
    with pytest.raises(ConfigurationError, match=name):
        task.apply_async((1,), offload={name: value})


# -- what isn't remembered


def raising(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize("error", (ValueError("no"), Ignore(), Reject(), KeyError(1)), ids=type)
def test_failures_are_not_remembered(memo, error):
    """A task that raises an error, Ignore, or Reject runs again, and blocks nobody meanwhile."""
    task = memo.task(raising(error))
    for _ in range(2):
        task.delay()
        memo.wire.work()
    assert len(memo.runs) == 2
    assert memo.records == []
    assert list_leases(memo) == []
    assert memo.counts() == {"misses": 2}


def test_retries_and_replacements_are_not_remembered(memo):
    """A task that retries or is replaced computes again; its retry isn't a waiting call."""
    replacing = {}

    @memo.wire.app.task(bind=True, shared=False, offload={"memo": 60, "version": "1"})
    def task(self, how):
        memo.runs.append(how)
        if how == "retry" and not self.request.retries:
            raise self.retry(countdown=0)
        if how == "replace":
            raise self.replace(replacing["by"].si(1))
        return self.request.retries

    replacing["by"] = memo.task(small)
    assert memo.wire.run(task, "retry") == 1
    assert memo.wire.run(task, "retry") == 1
    assert memo.wire.run(task, "replace") == [1, 1]
    assert memo.wire.run(task, "replace") == [1, 1]
    assert memo.runs.count("retry") == 2
    assert memo.runs.count("replace") == 2
    assert memo.runs.count(((1,), {})) == 1


def test_a_generator_is_not_remembered(memo):
    """A task that returns a generator does as without memo: it fails, each time."""
    task = memo.task(lambda: (n for n in range(3)))
    for _ in range(2):
        result = task.delay()
        memo.wire.work()
        assert result.state == states.FAILURE
    assert len(memo.runs) == 2
    assert memo.records == []
    assert not list_leases(memo)


def test_eager_and_direct_calls_run_the_function(memo):
    """Calls in this process run the function, and neither use nor write results."""
    task = memo.task(small)
    memo.wire.run(task, 1)
    assert task(1) == [1, 1]
    assert task.apply((1,)).get() == [1, 1]
    memo.wire.app.conf.task_always_eager = True
    assert task.delay(1).get() == [1, 1]
    assert len(memo.runs) == 4
    assert memo.counts() == {"misses": 1}


def test_other_tasks_pay_nothing(memo, monkeypatch):
    """For a small message of a task without memo, nothing is looked up."""
    looked = []
    look_up = memo_hooks.Memos.look_up
    monkeypatch.setattr(
        memo_hooks.Memos, "look_up", lambda *given: looked.append(1) or look_up(*given)
    )
    plain = memo.wire.app.task(name="plain", shared=False)(small)
    task = memo.task(small)
    assert memo.wire.run(plain, 1) == [1, 1]
    assert looked == []
    assert memo.wire.run(task, 1) == [1, 1]
    assert len(looked) == 1


# -- faults


def list_leases(memo):
    """Return the names of the leases that somebody has."""
    leases = memo.wire.hook.store.leases
    return [name for name in leases.names("memo/") if leases.read(name) is not None]


def warnings(caplog, memo):
    name = "task 'run'"
    return [each for each in caplog.records if each.getMessage().startswith(name)]


def test_what_cannot_be_hashed_runs_uncached(memo, caplog):
    """Arguments that can't be serialized run uncached; each is counted, the first is logged."""
    memo.wire.app.conf.task_serializer = "pickle"
    task = memo.task(lambda value: 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert memo.wire.run(task, Once()) == 1
    assert len(memo.runs) == 3
    assert memo.counts() == {"uncached": 3}
    assert len(warnings(caplog, memo)) == 1


def test_the_log_shows_no_arguments(memo, caplog):
    """If a key function fails, the log says where, but not its error's text, which may contain an
    argument.
    """

    def by_number(arguments):
        return int(arguments["number"])

    task = memo.task(lambda number: 1, memo_key=by_number)
    with caplog.at_level(logging.WARNING):
        assert memo.wire.run(task, "hunter2") == 1
    (warning,) = warnings(caplog, memo)
    assert "ValueError" in warning.getMessage()
    assert "by_number" in warning.getMessage()
    assert "hunter2" not in caplog.text


class Once:
    """An object that can be sent, but not serialized by its receiver."""

    def __init__(self, *, received=False):
        self.received = received

    def __reduce__(self):
        if self.received:
            raise TypeError("sent already")
        return functools.partial(Once, received=True), ()


def test_an_unavailable_store_does_not_fail_a_task(memo, monkeypatch, caplog):
    """While the store is down, tasks run uncached; a failure to remember fails nothing either."""
    task = memo.task(small)
    pointers = memo.wire.hook.store.pointers

    def down(*_args):
        raise StoreUnavailable("down")

    memo.wire.run(task, 0)
    with caplog.at_level(logging.WARNING):
        for name in ("read", "swap"):
            with monkeypatch.context() as patch:
                patch.setattr(pointers, name, down)
                assert memo.wire.run(task, 1) == [1, 1]
    assert memo.counts() == {"misses": 2, "uncached": 2}
    assert len(warnings(caplog, memo)) == 1
    assert memo.wire.run(task, 1) == [1, 1]
    assert memo.counts() == {"misses": 3, "uncached": 2}


def test_a_hit_in_an_outage_comes_back(memo, monkeypatch):
    """If the store is lost between finding a large result and holding it, the message comes back,
    and returns the result without computing it.
    """
    task = memo.task(lambda x: LARGE)
    np.testing.assert_equal(memo.wire.run(task, 1), LARGE)
    holds, outages = memo.wire.hook._runtime.content.holds, [StoreUnavailable("down")]
    add = holds.add

    def down_once(*given):
        if outages:
            raise outages.pop()
        return add(*given)

    monkeypatch.setattr(holds, "add", down_once)
    monkeypatch.setattr(type(memo.wire.hook.settings.retry), "wait", lambda *_given: 0.0)
    np.testing.assert_equal(memo.wire.run(task, 1), LARGE)
    assert len(memo.runs) == 1
    assert memo.wire.hook.counters.snapshot()["task_retries"] == 1
    assert not outages


def test_a_store_without_leases_remembers_nothing(tmp_path):
    """On a store without leases, tasks run uncached."""
    pytest.importorskip("fsspec")
    memo = Memo(make_wire(store=f"fsspec+file://{tmp_path}", watch=False))
    task = memo.task(small)
    for _ in range(2):
        assert memo.wire.run(task, 1) == [1, 1]
    assert memo.counts() == {"uncached": 2}


@pytest.mark.parametrize("change", ("value", "signature", "moved", "cut"))
def test_a_record_that_was_tampered_with_is_a_miss(memo, change, caplog):
    """An altered record, or one of another call, is computed again, logged, and counted."""
    task = memo.task(small)
    memo.wire.run(task, 1)
    memo.wire.run(task, 2)
    pointers = memo.wire.hook.store.pointers
    one, two = (each.name for each in sorted(memo.records, key=lambda each: each.created))
    value = pointers.read(one)
    altered = {
        "value": value.replace(b'"root":"', b'"root":"QQ'),
        "signature": b"0" * 32 + value[32:],
        "moved": pointers.read(two),
        "cut": value[:40],
    }[change]
    assert pointers.swap(one, value, altered)
    with caplog.at_level(logging.WARNING):
        assert memo.wire.run(task, 1) == [1, 1]
    assert len(memo.runs) == 3
    assert memo.wire.hook.counters.snapshot()["refs_refused"] == 1
    assert any(one in each.getMessage() for each in caplog.records)
    assert memo.wire.run(task, 1) == [1, 1]
    assert len(memo.runs) == 3


def test_a_missing_result_is_computed_again(memo):
    """If the blobs of a remembered result are gone, the call is computed, and then remembered."""
    task = memo.task(lambda rows: LARGE)
    memo.wire.run(task, ROWS)
    store, content = memo.wire.hook.store, memo.wire.hook._runtime.content
    for record in memo.records:
        store.blobs.delete([content.open(record.ref).digest])
    np.testing.assert_equal(memo.wire.run(task, ROWS), LARGE)
    assert memo.runs[1] == ((ROWS,), {})
    assert memo.counts()["uncached"] == 1
    np.testing.assert_equal(memo.wire.run(task, ROWS), LARGE)
    np.testing.assert_equal(memo.wire.run(task, ROWS), LARGE)
    assert len(memo.runs) == 3


def test_a_result_that_cannot_be_decoded_is_computed_again(memo):
    """A record whose result this app doesn't accept is computed again and replaced."""
    task = memo.task(lambda: Exact(5))
    memo.wire.app.conf.result_serializer = "pickle"
    assert memo.wire.run(task).n == 5
    other = Memo(make_wire(store=memo.wire.hook.settings.store, conf={"accept_content": ["json"]}))
    other.wire.app.main = memo.wire.app.main
    other.wire.app.conf.result_serializer = "pickle"
    other.wire.app.conf.result_accept_content = ["pickle"]
    task = other.task(lambda: Exact(5))
    assert other.wire.run(task).n == 5
    assert other.counts() == {"misses": 1}


class Exact:
    def __init__(self, n):
        self.n = n


def test_expired_records_are_computed_again(memo):
    """A record isn't used after its time, although no sweep has deleted it."""
    task = memo.task(small)
    memo.wire.run(task, 1)
    store, keys = memo.wire.hook.store, memo.wire.hook._runtime.content.signing.keys
    [record] = memo.records
    assert 3590 < record.until - record.created <= 3600
    value = store.pointers.read(record.name)
    expired = write_record(replace(record, until=record.created - 1), keys)
    assert store.pointers.swap(record.name, value, expired)
    memo.wire.run(task, 1)
    assert len(memo.runs) == 2
    [again] = memo.records
    assert again.until > record.created
    assert again.fence > record.fence
    assert read_record(again.name, store.pointers.read(again.name), keys) == again


def test_true_remembers_as_long_as_results_live(memo):
    """``memo=True`` remembers for ``result_expires`` seconds."""
    memo.wire.app.conf.result_expires = 1234
    memo.wire.run(memo.task(small, memo=True), 1)
    [record] = memo.records
    assert round(record.until - record.created) == 1234


# -- forget


def test_forgetting_computes_again(memo):
    """After `forget` with the same arguments, small or large, or `forget_all`, a call computes."""
    task = memo.task(small)
    for value in (1, ROWS, "text", (1, 2), {"a": (1, 2)}):
        for call in ((value,), (value, 1)):
            before = len(memo.runs)
            memo.wire.run(task, value)
            memo.wire.run(task, value)
            assert len(memo.runs) == before + 1
            assert forget(task, *call) is True
            assert forget(task, x=value) is False
        memo.wire.run(task, value)
        assert memo.wire.hook.memo.forget_all(task) == 1
    with pytest.raises(ConfigurationError, match="memoize"):
        forget(len, 1)


def test_forgetting_a_computation_fences_it(memo):
    """A result that is computed while it is forgotten isn't remembered."""
    task = memo.task(small)
    memo.inside.append(lambda: forget(task, 1))
    assert memo.wire.run(task, 1) == [1, 1]
    assert memo.records == []
    assert memo.counts() == {"misses": 1, "fenced": 1}


# -- waiting


def meanwhile(memo, *calls):
    """While the first run computes, execute the messages that wait, then do *calls*."""

    def execute():
        memo.inside.clear()
        while message := memo.wire.take():
            memo.wire.execute(message)
            if memo.counts().get("waits", 0):
                break
        for call in calls:
            call()

    memo.inside.append(execute)


@pytest.fixture
def no_countdown(monkeypatch):
    """Send waiting messages without a countdown, which nobody waits for here."""
    monkeypatch.setattr(memo_hooks.Call, "countdown", lambda self, waits: 0)


@pytest.mark.usefixtures("no_countdown")
@pytest.mark.parametrize("value", (1, ROWS))
def test_an_equal_call_waits_in_the_queue(memo, value):
    """An equal call that arrives during the computation goes back to the queue under its id, not
    as a retry, reads nothing, and gets the result.
    """
    task = memo.task(lambda x, **_: len(x) if isinstance(x, list) else x)
    first, second = task.delay(value), task.apply_async((value,), headers={"mine": 1})
    seen = []
    memo.wire.app.backend.store_result = _recording(memo.wire.app.backend.store_result, seen)
    meanwhile(memo, memo.wire.calls.clear)
    expected = memo.wire.get(first)
    assert second.get(timeout=10) == expected
    assert len(memo.runs) == 1
    assert memo.counts() == {"misses": 1, "waits": 1, "hits": 1}
    headers, body = memo.wire.sent[-1]
    assert headers["id"] == second.id
    assert headers["retries"] == 0
    assert headers["mine"] == 1
    assert body[2][EMBED]["waits"] == 1
    assert states.RETRY not in seen
    assert not _held(memo)


def _recording(function, seen):
    def recorded(task_id, result, state, *args, **kwargs):
        seen.append(state)
        return function(task_id, result, state, *args, **kwargs)

    return recorded


def _held(memo):
    blobs = memo.wire.hook.store.blobs
    names = [name for info in blobs.scan() for name in blobs.holders(info.digest)]
    return [name for name in names if name.startswith("task:")]


@pytest.mark.usefixtures("no_countdown")
def test_a_waiting_call_counts_once_for_a_rate_limit(memo):
    """A message that comes back takes no token of its task's rate limit; others take theirs."""
    requests.install()
    task = memo.task(small)
    results = [task.delay(1), task.delay(1)]
    received = []

    def receive():
        message = memo.wire.take()
        request = Request(message, app=memo.wire.app, task=task)
        bucket = TokenBucket(1, capacity=1)
        consumer = SimpleNamespace(
            qos=SimpleNamespace(decrement_eventually=lambda: None),
            _schedule_bucket_request=lambda bucket: received.append(bucket.pop()[1]),
        )
        Consumer._limit_post_eta(consumer, request, bucket, 1)
        memo.wire.execute(message)

    def receive_second():  # while the first computes
        memo.inside.clear()
        receive()

    memo.inside.append(receive_second)
    receive()
    receive()
    assert received == [1, 1, 0]
    assert [each.get(timeout=10) for each in results] == [[1, 1]] * 2


@pytest.mark.usefixtures("no_countdown")
def test_a_waiting_call_takes_over_after_a_failure(memo):
    """If the computation fails, the call that waited computes; only the first has failed."""

    def once(x):
        if len(memo.runs) == 1:
            raise ValueError(x)
        return x

    task = memo.task(once)
    first, second = task.delay(1), task.delay(1)
    meanwhile(memo)
    memo.wire.work()
    assert first.state == states.FAILURE
    assert second.get(timeout=10) == 1
    assert memo.counts() == {"misses": 2, "waits": 1}


@pytest.mark.parametrize("base", (Task, type("Base", (Task,), {"before_start": lambda *_: None})))
def test_a_call_that_cannot_wait_computes(memo, monkeypatch, base):
    """If the broker doesn't take a waiting message back, its call computes by itself."""
    task = memo.task(lambda rows: len(rows), base=base)
    first, second = task.delay(ROWS), task.delay(ROWS)

    def broken(*_args, **_options):
        raise OSError("broker down")

    monkeypatch.setattr(base, "signature_from_request", broken)
    meanwhile(memo)
    while message := memo.wire.take():
        memo.wire.execute(message)
    assert (first.get(timeout=10), second.get(timeout=10)) == (5000, 5000)
    assert memo.runs == [((ROWS,), {})] * 2
    assert memo.counts()["uncached"] == 1


def test_blocking_waits_in_place(memo, monkeypatch):
    """With ``wait="block"``, a call waits in its process, and then gets the result."""
    task = memo.task(small, wait="block")
    memo.wire.run(task, 1)
    [record] = memo.records
    store = memo.wire.hook.store
    value = store.pointers.read(record.name)
    store.pointers.swap(record.name, value, None)
    store.leases.acquire(record.name, "other", 30)
    flights = memo.wire.hook.memo.results.flights
    waited = []

    def wait(name, busy, attempt):
        waited.append((name, attempt))
        if attempt == 2:
            store.pointers.swap(name, None, value)
            store.leases.release(name, "other")

    monkeypatch.setattr(flights, "wait", wait)
    assert memo.wire.run(task, 1) == [1, 1]
    assert waited == [(record.name, n) for n in range(3)]
    assert memo.counts() == {"misses": 1, "waits": 1, "hits": 1}


def test_countdowns_grow_and_end_with_the_lease(memo):
    """A waiting message comes back after 0.2 to 5 s, and right after the lease may have expired."""
    from offload.memo.flight import Busy

    memos = memo.wire.hook.memo
    function = memos._learn(memo.task(small)).function

    def countdown(left, waits):
        return memo_hooks.Call(memos, function, None, "", lambda: Busy(left)).countdown(waits)

    pauses = [countdown(1000.0, waits) for waits in range(200)]
    assert 0.14 < pauses[0] < 0.26
    assert all(pause <= 6.25 for pause in pauses)
    assert min(pauses[20:]) > 3.7
    assert countdown(0.5, 100) <= 0.71
    assert countdown(0.0, 100) > 0


def test_nothing_is_prefetched_for_memo_tasks(memo, monkeypatch):
    """A worker's main process fetches no values ahead for memo tasks, whose call may be a hit."""
    offered = []
    monkeypatch.setattr(prefetch, "_will_wait", lambda request, pool: offered.append(request))
    monkeypatch.setattr(prefetch.Prefetcher, "_is_on", lambda self, pool: True)
    plain = memo.wire.app.task(name="plain", shared=False)(small)
    for task in (memo.task(small), plain):
        request = SimpleNamespace(task=task, _payload=((), {}, {EMBED: {"refs": [["args", 0]]}}))
        memo.wire.hook._runtime.part(prefetch.Prefetcher).offer(request, None)
    assert [request.task.name for request in offered] == ["plain"]
