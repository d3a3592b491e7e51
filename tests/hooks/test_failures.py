"""Large failures and progress: what plain Celery delivers, from small entries in the backend."""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import pickle
import re
from pathlib import Path
from traceback import walk_tb

import pytest
from celery import Celery, chord, signals, states
from celery.exceptions import Ignore
from celery.result import AsyncResult
from celery.worker.request import Request

import offload
from offload import FailureTruncated, StoreUnavailable
from offload.hooks import requests
from offload.inspect.values import describe_task
from tests.support.processes import wait_until
from tests.support.sql_results import new_database
from tests.support.wire import Wire, make_wire

MESSAGE = "no rows in " + "x" * 100_000
ROWS = [{"row": n, "text": "ä" * 50} for n in range(100)]
ENTRY = 4000
"""Bytes below which an entry in the backend stays."""
KEY = "aes256:" + base64.b64encode(bytes(range(32))).decode()

number = itertools.count()


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Keep Celery from logging the failures, which are large."""
    monkeypatch.setattr(logging.getLogger("celery.app.trace"), "disabled", True)


class Custom(ValueError):
    def __init__(self, message, rows, *, extra=None):
        super().__init__(message, rows)
        self.extra = extra


class NeedsTwo(Exception):
    """Can't be constructed from its ``args``."""

    def __init__(self, one, two):
        super().__init__(one + two)


def raise_error(kind):
    if kind == "message":
        raise ValueError(MESSAGE)
    if kind == "arguments":
        raise Custom("rows", ROWS, extra={"some": "more"})
    if kind == "cause":
        try:
            raise KeyError(MESSAGE)
        except KeyError as exc:
            raise RuntimeError("small", 1) from exc
    if kind == "unimportable":
        raise type("Unimportable", (LookupError,), {"__module__": "no.such.module"})(MESSAGE, 7)
    if kind == "unconstructible":
        raise NeedsTwo(MESSAGE, "end")
    if kind == "bytes":
        (b"\xff" * 100_000).decode()
    if kind == "emoji":
        raise ValueError("😀" * 100_000, "ä" * 5000, {"é": "\x00" * 5000})
    raise ValueError("small")


def plain_wire(conf):
    app = Celery(f"plain{next(number)}", broker="memory://", set_as_current=False)
    app.conf.update(
        {"result_backend": "cache+memory://", "task_default_queue": app.main, **conf},
        accept_content=["json", "pickle", "yaml", "msgpack"],
    )
    return Wire(app, None)


def offload_wire(conf, **settings):
    accepted = {"accept_content": ["json", "pickle", "yaml", "msgpack"]}
    return make_wire(conf={**accepted, **conf}, watch=False, **settings)


def with_tasks(wire):
    app = wire.app

    @app.task(name="fail", bind=True, shared=False)
    def fail(_self, kind):
        raise_error(kind)

    @app.task(name="retried", bind=True, shared=False)
    def retried(self):
        if self.request.retries:
            return "done"
        try:
            raise_error("message")
        except ValueError as exc:
            raise self.retry(exc=exc, countdown=0) from exc

    @app.task(name="stubborn", bind=True, shared=False)
    def stubborn(self, end):
        if self.request.retries:
            if end == "fails":
                raise KeyError(MESSAGE)
            return ROWS if end == "returns" else 1
        raise self.retry(exc=ValueError(MESSAGE), countdown=0)

    @app.task(name="progress", bind=True, shared=False)
    def progress(self, *values):
        for value in values:
            self.update_state(state="PROGRESS", meta=value)
            wire.seen.append(described(app, self.request.id))
        raise Ignore

    @app.task(name="by_hand", bind=True, shared=False)
    def by_hand(self, state, meta):
        self.update_state(state=state, meta=meta)
        raise Ignore

    @app.task(name="steps", bind=True, shared=False)
    def steps(self, end):
        for rows in (ROWS, ROWS[:50], ROWS[:50], {"small": 1}, ROWS):
            self.update_state(state="PROGRESS", meta=rows)
            wire.held.append(len(holders(wire)))
        if end == "fails":
            raise ValueError(MESSAGE)
        if end == "ignored":
            raise Ignore
        return ROWS

    @app.task(name="collect", shared=False)
    def collect(values):
        return values

    @app.task(name="errback", shared=False)
    def errback(request, exc, traceback):
        call = [*request.args], request.kwargs
        wire.seen.append((request.id is not None, call, type(exc).__name__, exc.args, traceback))

    @app.task(name="old_errback", shared=False)
    def old_errback(task_id):
        wire.seen.append(described(app, task_id))

    wire.seen, wire.held = [], []
    return wire


def described(app, task_id):
    """Return all that a reader learns about a task."""
    result = AsyncResult(task_id, app=app)
    found = result.result
    if isinstance(found, BaseException):
        kind = type(found)
        attributes = {k: v for k, v in vars(found).items() if not k.startswith("__")}
        found = (kind.__module__, kind.__qualname__, kind.__mro__[1].__name__, found.args)
        found = (*found, attributes)
    return result.state, found, result.traceback


def entry(wire, task_id):
    """Return what the backend has about a task, as bytes."""
    backend = wire.app.backend
    if hasattr(backend, "task_cls"):
        session = backend.ResultSession()
        (row,) = session.query(backend.task_cls).filter_by(task_id=task_id)
        return pickle.dumps(row.to_dict())
    found = backend.get(backend.get_key_for_task(task_id))
    return found.encode() if isinstance(found, str) else found


def holders(wire):
    blobs = wire.hook.store.blobs
    return {name for info in blobs.scan() for name in blobs.holders(info.digest)}


def fetched(wire):
    return wire.hook.counters.snapshot()["values_fetched"]


def short(described):
    """Return what a failed assertion can show."""
    return [repr(each)[:300] for each in described]


# -- as in plain Celery


def conf_of(backend, serializer, folder):
    urls = {
        "cache": lambda: "cache+memory://",
        "database": lambda: new_database(folder / f"results{next(number)}.db"),
        "files": lambda: f"file://{folder}",
    }
    return {"result_backend": urls[backend](), "result_serializer": serializer}


def test_a_failure_of_two_megabytes_is_stored_once(tmp_path):
    """The message of an exception and the same text in its traceback leave a small entry; all of
    it is fetched by one read.
    """
    wire = with_tasks(offload_wire({}))

    @wire.app.task(name="huge", shared=False)
    def huge():
        raise ValueError("y" * 2_000_000)

    result = huge.delay()
    wire.work()
    taken = wire.hook.counters.take()
    assert len(entry(wire, result.id)) < ENTRY
    with pytest.raises(ValueError, match="yyyy") as caught:
        result.get(timeout=10)
    assert len(caught.value.args[0]) == 2_000_000
    assert len(result.traceback) > 2_000_000
    assert fetched(wire) == 1
    counted = {each.argument: n for each, n in taken.items() if each.name == "values_offloaded"}
    assert counted == {"failure": 1}


def test_a_small_exception_fetches_nothing():
    """Of a failure with a large traceback, the exception is read from the entry itself."""
    for serializer in ("json", "pickle"):
        wire = with_tasks(offload_wire({"result_serializer": serializer}))
        result = wire.app.tasks["fail"].delay("cause")
        wire.work()
        assert (type(result.info), result.info.args) == (RuntimeError, ("small", 1))
        assert fetched(wire) == 0
        assert MESSAGE in result.traceback
        assert fetched(wire) == 1
        small = wire.app.tasks["fail"].delay("small")
        wire.work()
        assert small.info.args == ("small",)
        assert fetched(wire) == 1


def test_errbacks_and_chords_are_as_on_plain_celery():
    """Error callbacks of both kinds, and a chord with a failing part, see what plain Celery
    delivers.
    """
    outcomes = []
    for wire in map(with_tasks, (plain_wire({}), offload_wire({}))):
        tasks = wire.app.tasks
        fail, errback, old = tasks["fail"], tasks["errback"].s(), tasks["old_errback"].s()
        failed = fail.apply_async(("arguments",), link_error=[errback, old])
        wire.work()
        chained = (fail.si("message") | tasks["collect"].s()).apply_async(link_error=errback)
        wire.work()
        body = tasks["collect"].s(MESSAGE, more=[MESSAGE]).on_error(errback)
        joined = chord([fail.s("message"), tasks["collect"].s(1)])(body)
        wire.work()
        ids = (failed.id, chained.id, chained.parent.id, joined.id)
        seen = [without_ids(each, joined) for each in wire.seen]
        found = [without_ids(described(wire.app, each), joined) for each in ids]
        outcomes.append([*seen, *found])
    plain, ours = outcomes
    assert [short(each) for each in ours] == [short(each) for each in plain]
    assert ours == plain or pytest.fail("the large parts differ")


@pytest.mark.parametrize("serializer", ("json", "pickle", "msgpack", "yaml"))
def test_a_failed_chain_stores_its_later_steps(serializer):
    """With ``result_extended``, the later steps of a failed chain are stored with references to
    their arguments, and the hooks of the failed task run.
    """
    conf = {"result_serializer": serializer, "accept_content": ["json", serializer]}
    wire = with_tasks(offload_wire({**conf, "result_extended": True}))
    tasks = wire.app.tasks
    chained = tasks["fail"].s("small") | tasks["collect"].s(MESSAGE, more=MESSAGE)
    result = chained.apply_async(link_error=tasks["errback"].s())
    wire.work()
    assert type(result.parent.result) is type(result.result)
    assert [each[2] for each in wire.seen] == [type(result.result).__name__]
    [argument] = result.args
    assert [argument.get(), result.kwargs["more"].get()] == [MESSAGE, MESSAGE]


def without_ids(found, chord_result):
    """Return *found* with the same text in place of the ids of a chord's parts."""
    ids = [part.id for part in chord_result.parent.results]
    text = repr(found)
    for task_id in ids:
        text = text.replace(task_id, "<part>")
    return text


def test_a_large_retry_is_as_on_plain_celery():
    """The exception of `retry(exc=…)` is read while the task waits, and the result afterwards."""
    outcomes = []
    for wire in map(with_tasks, (plain_wire({}), offload_wire({}))):
        result = wire.app.tasks["retried"].delay()
        wire.execute(wire.take())
        waiting = described(wire.app, result.id)
        if wire.hook is not None:
            assert len(entry(wire, result.id)) < ENTRY
        wire.work()
        outcomes.append([waiting, result.get(timeout=10)])
    plain, ours = outcomes
    assert short(ours[0]) == short(plain[0])
    assert ours == plain or pytest.fail("the large parts differ")


# -- progress


@pytest.mark.parametrize("serializer", ("json", "pickle", "msgpack"))
@pytest.mark.parametrize("backend", ("cache", "database", "files"))
def test_large_progress_is_as_on_plain_celery(backend, serializer, tmp_path):
    """Large and small progress is read as from plain Celery, also if it looks like offload's own
    data; the entry stays small, and reading the state fetches nothing.
    """
    imitation = {"offload_progress": "offload:1?d=x", "offload_holder": "a", "offload": "b"}
    values = ({"done": ROWS}, {"done": 1}, imitation, ["x" * 5000], "z" * 5000)
    conf = conf_of(backend, serializer, tmp_path)
    outcomes = []
    for wire in map(with_tasks, (plain_wire(conf), offload_wire(conf))):
        result = wire.app.tasks["progress"].delay(*values)
        wire.work()
        if wire.hook is not None:
            assert len(entry(wire, result.id)) < ENTRY
            before = fetched(wire)
            assert wire.app.AsyncResult(result.id).state == "PROGRESS"
            assert fetched(wire) == before
        outcomes.append([*wire.seen, described(wire.app, result.id)])
    assert outcomes[1] == outcomes[0]
    assert [found[1] for found in outcomes[1][:-1]] == list(values)


@pytest.mark.parametrize("backend", ("cache", "database"))
def test_new_progress_releases_the_former(backend, tmp_path):
    """Only the value of the present state is held: progress is replaced by progress and by the
    end of the task, and `forget` releases it.
    """
    wire = with_tasks(offload_wire(conf_of(backend, "json", tmp_path)))
    held = wire.held
    for end in ("returns", "fails", "ignored"):
        held.clear()
        result = wire.app.tasks["steps"].delay(end)
        wire.work()
        assert held == [1, 1, 1, 0, 1]
        name = "progress" if end == "ignored" else "result"
        (left,) = holders(wire)
        assert left.startswith(f"{name}:{result.id}")
        result.forget()
        assert holders(wire) == set()


def test_frequent_progress_does_not_pile_up():
    """Progress that was replaced is deleted after a minute, whatever else has the same content; its
    task's arguments and large progress, which may share chunks, keep the grace period.
    """
    wire = with_tasks(offload_wire({}, grace=5000))

    @wire.app.task(name="often", bind=True, shared=False)
    def often(self, rows):
        for _ in range(20):
            self.update_state(state="PROGRESS", meta=rows)
        assert wire.app.AsyncResult(self.request.id).info == rows
        raise Ignore

    lives = []
    for rows in (ROWS, "x" * (1 << 20)):
        result = often.delay(rows)
        wire.work()
        lives.append(sorted(info.ttl for info in wire.hook.store.blobs.scan()))
        result.forget()
        wire.hook.store.blobs.delete([info.digest for info in wire.hook.store.blobs.scan()])
    small, large = lives
    assert sum(ttl > 60 for ttl in small) == 2  # the argument, and the last progress
    assert min(large) > 60


@pytest.mark.parametrize("backend", ("cache", "database"))
@pytest.mark.parametrize("end", ("returns", "fails", "small"))
def test_a_retry_releases_the_failure_that_it_replaces(backend, end, tmp_path):
    """What a task's last state refers to is all that is held after a retry, whichever process
    executed its first message, and however small that state is.
    """
    conf = conf_of(backend, "json", tmp_path)
    wire = with_tasks(offload_wire(conf))
    result = wire.app.tasks["stubborn"].delay(end)
    wire.execute(wire.take())
    (waiting,) = holders(wire)
    assert waiting.startswith(f"progress:{result.id}")
    wire.work()
    left = {"returns": {f"result:{result.id}"}, "fails": {f"result:{result.id}"}, "small": set()}
    assert holders(wire) == left[end]
    assert result.state == ("FAILURE" if end == "fails" else "SUCCESS")


@pytest.mark.parametrize("backend", ("cache", "database"))
@pytest.mark.parametrize("state", ("FAILURE", "REVOKED"))
def test_a_killed_task_releases_its_progress(backend, state, tmp_path):
    """If the main process ends a task that has stored large progress, nothing stays held."""
    wire = with_tasks(offload_wire(conf_of(backend, "json", tmp_path)))
    wire.app.tasks["steps"].delay("ignored")  # as killed: the last state is its progress
    message = wire.take()
    wire.execute(message)
    task_id = message.headers["id"]
    (left,) = holders(wire)
    assert left.startswith(f"progress:{task_id}")
    requests.install()
    message.headers = {**message.headers, "task": "steps"}
    request = Request(message, app=wire.app, task=wire.app.tasks["steps"])
    if state == "FAILURE":
        request.on_timeout(soft=False, timeout=1)
    else:
        request._announce_revoked("terminated", True, 15, False)
    assert wire.app.AsyncResult(task_id).state == state
    wait_until(lambda: not holders(wire), "its progress is released")


def test_progress_stored_by_others_releases_the_former():
    """A process that doesn't execute the task replaces and releases its large progress, too."""
    wire = with_tasks(offload_wire({}))
    for rows in (ROWS, ROWS[:50]):
        wire.app.tasks["fail"].update_state("some-id", "PROGRESS", rows)
        assert len(holders(wire)) == 1
    assert wire.app.AsyncResult("some-id").info == ROWS[:50]
    wire.app.backend.store_result("some-id", ROWS, states.SUCCESS)
    assert wire.app.AsyncResult("some-id").get(timeout=10) == ROWS
    wire.app.AsyncResult("some-id").forget()


@pytest.mark.parametrize("serializer", ("json", "pickle"))
def test_a_failure_stored_by_hand_is_read_as_in_plain_celery(serializer):
    """`update_state(state="FAILURE")` with an exception's data is offloaded like an exception."""
    meta = {"exc_type": "ValueError", "exc_module": "builtins", "exc_message": [MESSAGE, 1]}
    outcomes = []
    for settings in (None, {}):
        conf = {"result_serializer": serializer}
        wire = with_tasks(plain_wire(conf) if settings is None else offload_wire(conf))
        result = wire.app.tasks["by_hand"].delay("FAILURE", meta)
        wire.work()
        outcomes.append(described(wire.app, result.id))
        if settings is not None:
            assert len(entry(wire, result.id)) < ENTRY
    assert short(outcomes[0]) == short(outcomes[1])
    assert outcomes[0] == outcomes[1] or pytest.fail("the large parts differ")


# -- faults


def break_store(wire, monkeypatch):
    def unavailable(*_given, **_more):
        raise StoreUnavailable("the store is down", store="memory://broken")

    for name in ("put", "hold", "get"):
        monkeypatch.setattr(wire.hook.store.blobs, name, unavailable)


def test_without_a_store_small_failures_are_stored(tmp_path):
    """Where nothing is offloaded, failures and states need no store."""
    conf = conf_of("database", "json", tmp_path)
    wire = with_tasks(offload_wire(conf, store=None, mode="off"))
    failed = [wire.app.tasks["fail"].delay(kind) for kind in ("small", "message")]
    going = [wire.app.tasks["by_hand"].delay(*each) for each in (("SUCCESS", ROWS), ("GO", ROWS))]
    wire.work()
    assert [each.state for each in (*failed, *going)] == ["FAILURE", "FAILURE", "SUCCESS", "GO"]
    assert [each.info for each in going] == [ROWS, ROWS]
    assert failed[1].info.args == (MESSAGE,)


@pytest.mark.parametrize("kind", ("bytes", "emoji", "unconstructible", "unimportable", "message"))
def test_every_stand_in_is_small_and_keeps_the_class(kind, monkeypatch):
    """Whatever its arguments, a truncated failure is small, and of its class where Celery can
    construct that.
    """
    for serializer in ("json", "pickle", "msgpack"):
        wire = with_tasks(offload_wire({"result_serializer": serializer}, retry={"max_retries": 0}))
        result = wire.app.tasks["fail"].delay(kind)
        break_store(wire, monkeypatch)
        wire.work()
        assert len(entry(wire, result.id)) < ENTRY
        found = result.result
        assert isinstance(found.__cause__, FailureTruncated)
        names = {"bytes": "UnicodeDecodeError", "unimportable": "LookupError"}
        if kind == "unconstructible":
            assert "NeedsTwo" in str(found.args)
        else:
            assert type(found).__name__ == names.get(kind, "ValueError")


@pytest.mark.parametrize("serializer", ("json", "pickle"))
def test_a_failing_store_hides_no_error(serializer, monkeypatch):
    """While the store is unavailable, a large failure is stored truncated: its class stays, and a
    typed cause says what is missing and why.
    """
    wire = with_tasks(offload_wire({"result_serializer": serializer}, retry={"max_retries": 0}))
    result = wire.app.tasks["fail"].delay("arguments")
    break_store(wire, monkeypatch)
    wire.work()
    assert len(entry(wire, result.id)) < ENTRY
    with pytest.raises(Custom) as caught:
        result.get(timeout=10)
    assert caught.value.args[0] == "rows"
    cause = caught.value.__cause__
    assert isinstance(cause, FailureTruncated)
    assert "StoreUnavailable: the store is down" in str(cause)
    assert "truncated by offload" in result.traceback
    assert result.traceback.startswith("Traceback")
    counted = wire.hook.counters.snapshot()
    assert (counted["failures_truncated"], counted["errors_unavailable"]) == (1, 1)


def test_a_lost_value_hides_no_error(monkeypatch):
    """A reader that can't fetch a failure raises its class, with a typed cause; with the store
    back, another reader gets all of it.
    """
    wire = with_tasks(offload_wire({}, retry={"max_retries": 0}))
    result = wire.app.tasks["fail"].delay("message")
    wire.work()
    with monkeypatch.context() as broken:
        break_store(wire, broken)
        with pytest.raises(ValueError, match="truncated by offload") as caught:
            result.get(timeout=10)
    assert isinstance(caught.value.__cause__, FailureTruncated)
    assert "can't be read: StoreUnavailable" in str(caught.value.__cause__)
    assert wire.app.AsyncResult(result.id).result.args == (MESSAGE,)


def test_readers_without_offload_see_the_class_and_what_to_do():
    """Plain Celery reads a large failure as its class with truncated arguments, and large progress
    as text.
    """
    plain = with_tasks(plain_wire({}))
    wire = with_tasks(offload_wire({}))
    backend = plain.app.backend
    failed, going = wire.app.tasks["fail"].delay("message"), wire.app.tasks["progress"].delay(ROWS)
    wire.work()
    for task_id in (failed.id, going.id):
        backend.set(backend.get_key_for_task(task_id), entry(wire, task_id))
    state, found, traceback = described(plain.app, failed.id)
    assert (state, found[1]) == ("FAILURE", "ValueError")
    assert "truncated by offload" in found[3][0]
    assert "stored by offload" in traceback
    state, found, _ = described(plain.app, going.id)
    assert state == "PROGRESS"
    assert "install or upgrade offload" in found["offload"]


def test_failing_progress_is_the_tasks_error(monkeypatch):
    """Large progress that can't be stored raises a typed error that names the task."""
    wire = with_tasks(offload_wire({}, retry={"max_retries": 0}))
    result = wire.app.tasks["steps"].delay("returns")
    break_store(wire, monkeypatch)
    wire.work()
    with pytest.raises(StoreUnavailable) as caught:
        result.get(timeout=10)
    assert (caught.value.task, caught.value.argument) == ("steps", "progress")


def test_forged_stand_ins_fetch_nothing():
    """A stored failure whose reference has no valid signature is raised as it is."""
    wire = with_tasks(offload_wire({}))
    result = wire.app.tasks["fail"].delay("message")
    wire.work()
    backend = wire.app.backend
    stored = entry(wire, result.id)
    mac = stored.index(b"&m=")
    forged = stored[: mac + 3] + b"0" * 32 + stored[mac + 35 :]
    backend.set(backend.get_key_for_task("forged"), forged)
    found = wire.app.AsyncResult("forged").result
    assert type(found) is ValueError
    assert isinstance(found.__cause__, FailureTruncated)
    assert fetched(wire) == 0


@pytest.mark.parametrize("settings", ({"mode": "off"}, {"mode": "observe"}, {"results": False}))
def test_where_results_stay_failures_stay(settings):
    """Where results aren't offloaded, failures and progress are stored as by plain Celery."""
    wire = with_tasks(offload_wire({}, **settings))
    failed, going = wire.app.tasks["fail"].delay("message"), wire.app.tasks["progress"].delay(ROWS)
    wire.work()
    assert MESSAGE.encode() in entry(wire, failed.id)
    assert len(entry(wire, going.id)) > 5000
    assert going.info == ROWS


def test_operators_see_failures_and_progress_as_values():
    """A task's description has the reference of large progress or of a large failure, with type
    and size, and fetches neither.
    """
    wire = with_tasks(offload_wire({}))
    going = wire.app.tasks["progress"].delay(ROWS)
    failed = wire.app.tasks["fail"].delay("message")
    wire.work()
    before = fetched(wire)
    found = [describe_task(wire.hook._runtime, each.id)["result_ref"] for each in (going, failed)]
    assert [(each.type, each.size > 5000) for each in found] == [
        ("list", True),
        ("ValueError", True),
    ]
    assert fetched(wire) == before


@pytest.mark.parametrize("kind", ("message", "cause"))
def test_encryption_keeps_the_text_of_failures_out_of_the_backend(kind):
    """With encryption keys, the stand-in of a large failure has nothing of its arguments."""
    wire = with_tasks(offload_wire({}, encryption_keys=[KEY]))
    result = wire.app.tasks["fail"].delay(kind)
    wire.work()
    assert not re.search(rb"no rows|small", entry(wire, result.id))
    assert result.result.args == ((MESSAGE,) if kind == "message" else ("small", 1))


@pytest.mark.parametrize("by", ("memoize", "memoize a coroutine", "get_or_compute", "memo"))
def test_no_frame_of_ours_calls_the_users_function(by):
    """The traceback of an error in a function that offload calls for the task has none of
    offload's frames, whose variables would repeat the arguments in error reports.
    """
    wire = make_wire()

    def compute(rows):
        raise KeyError("on purpose")

    async def compute_soon(rows):
        raise KeyError("on purpose")

    def task(rows):
        if by == "get_or_compute":
            return wire.hook.catalog.get_or_compute("total", "1", compute, rows)
        if by == "memoize":
            return wire.hook.memoize(ttl=60)(compute)(rows)
        if by == "memoize a coroutine":
            return asyncio.run(wire.hook.memoize(ttl=60)(compute_soon)(rows))
        return compute(rows)

    options = {"memo": 60} if by == "memo" else {}
    result = wire.app.task(name="task", shared=False, offload=options)(task).delay(ROWS)
    wire.work()
    assert isinstance(result.result, KeyError)
    assert ", in compute" in result.traceback
    assert str(Path(offload.__file__).parent) not in result.traceback


@pytest.mark.parametrize("how", ("cause", "context", "context of the cause", "suppressed"))
def test_no_frame_of_ours_is_in_causes(how):
    """If a task calls another one as a function, no frame of offload is in the tracebacks of an
    error's causes and contexts.
    """
    wire = make_wire()

    @wire.app.task(name="inner", shared=False)
    def inner(rows):
        raise KeyError("on purpose")

    def task(rows):
        try:
            inner(rows)
        except KeyError as error:
            if how == "context":
                raise ValueError("on purpose")  # noqa: B904 (so the first one is its context)
            if how == "context of the cause":
                later = ValueError("on purpose")
                later.__context__ = error
                raise TypeError("on purpose") from later
            raise ValueError("on purpose") from (error if how == "cause" else None)

    failed = []

    def keep(exception, **_):
        failed.append(exception)

    signals.task_failure.connect(keep)
    wire.app.task(name="task", shared=False)(task).delay(ROWS)
    wire.work()
    signals.task_failure.disconnect(keep)
    [error] = failed
    while error.__context__ is not None:
        error = error.__context__
    frames = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    assert isinstance(error, KeyError)
    assert frames
    assert not [name for name in frames if name.startswith(str(Path(offload.__file__).parent))]
