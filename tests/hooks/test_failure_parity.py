"""Failures of many kinds are read as from plain Celery, on every backend and serializer."""

from __future__ import annotations

import itertools
import logging
import pickle
import re
import sys
import threading

import numpy as np
import pytest
from celery import Celery
from celery.backends.database.models import Task
from celery.backends.rpc import RPCBackend
from celery.exceptions import MaxRetriesExceededError, SoftTimeLimitExceeded
from celery.result import AsyncResult
from kombu.transport.memory import Channel
from sqlalchemy import PickleType

from tests.support.sql_results import new_database
from tests.support.wire import Wire, make_wire

TEXT = "no rows in " + "x" * 2500
ROWS = [{"row": n, "text": "ä" * 50} for n in range(10)]
ENTRY = 4000
"""Bytes below which an entry in the backend stays."""
SERIALIZERS = ("json", "pickle", "msgpack", "yaml")
BACKENDS = (
    pytest.param("redis", marks=pytest.mark.server),
    *("database", "rpc", "files", "cache"),
)

number = itertools.count()


class Custom(ValueError):
    def __init__(self, message, rows=None, *, extra=None):
        super().__init__(message, rows)
        self.extra = extra


class NeedsTwo(Exception):
    """Can't be constructed from its ``args``."""

    def __init__(self, one, two):
        super().__init__(one + two)


class Reduced(LookupError):
    """Pickled by functions of its own; its ``args`` don't have its content."""

    def __init__(self, rows):
        super().__init__(len(rows))
        self.rows = rows

    def __reduce__(self):
        return Reduced, (self.rows,), {"state": TEXT}


class Unreducible(RuntimeError):
    def __reduce__(self):
        raise TypeError(TEXT)


class Holding(RuntimeError):
    """Has an attribute that can't be pickled."""

    def __init__(self, *args):
        super().__init__(*args)
        self.lock = threading.Lock()


class Shy(Exception):
    def __str__(self):
        raise ZeroDivisionError

    __repr__ = __str__


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, text):
        super().__init__(text)
        self.code = 5


class Outer:
    class Inner(Custom):
        pass


class NoArgs(Exception):
    def __init__(self, rows):
        super().__init__()
        self.rows = rows


class Text(str):
    __slots__ = ()


def with_cause(error, cause=None):
    try:
        raise KeyError(TEXT)
    except KeyError as exc:
        raise error from cause or exc


def with_notes(error):
    error.__notes__ = [TEXT]
    raise error


def raised(error):
    raise error


def group():
    return ExceptionGroup("many", [ValueError(TEXT), ExceptionGroup("more", [KeyError(1)])])  # noqa: F821


def cyclic():
    rows = [TEXT]
    rows.append(rows)
    return rows


KINDS = {
    "message": lambda: raised(ValueError(TEXT)),
    "arguments": lambda: raised(Custom("rows", ROWS, extra={"some": TEXT})),
    "cause": lambda: with_cause(RuntimeError("small", 1)),
    "large cause": lambda: with_cause(RuntimeError(TEXT), Custom(TEXT, ROWS)),
    "notes": lambda: with_notes(ValueError("noted")),
    "reduce": lambda: raised(Reduced(ROWS * 4)),
    "broken reduce": lambda: raised(Unreducible(TEXT)),
    "unpicklable": lambda: raised(Holding(TEXT, 1)),
    "unpicklable argument": lambda: raised(ValueError(threading.Lock(), TEXT)),
    "function": lambda: raised(ValueError(lambda: 1, TEXT)),
    "shy": lambda: raised(Shy(TEXT)),
    "slots": lambda: raised(Slotted(TEXT)),
    "nested class": lambda: raised(Outer.Inner(TEXT)),
    "attributes": lambda: raised(NoArgs(ROWS * 4)),
    "array": lambda: raised(ValueError(np.arange(2000.0), "end")),
    "array attribute": lambda: raised(Custom("small", extra=np.arange(500.0))),
    "in arguments": lambda: raised(ValueError(KeyError(TEXT), [Custom(TEXT)])),
    "group": lambda: raised(group()),
    "unimportable": lambda: raised(
        type("Unimportable", (LookupError,), {"__module__": "no.such.module"})(TEXT, 7)
    ),
    "unconstructible": lambda: raised(NeedsTwo(TEXT, "end")),
    "bytes": lambda: (b"\xff" * 5000).decode(),
    "emoji": lambda: raised(ValueError("😀" * 500, "ä" * 500, {"é": "\x00" * 500})),
    "surrogate": lambda: raised(ValueError("\udcff", TEXT)),
    "numbers": lambda: raised(ValueError(float("nan"), 2**70, -0.0, 1e400, True, None, TEXT)),
    "containers": lambda: raised(ValueError((1, (2,)), {"3": 4}, {5}, [TEXT], b"\xff")),
    "cycle": lambda: raised(ValueError(cyclic())),
    "text subclass": lambda: raised(ValueError(Text(TEXT), 1)),
    "system": lambda: raised(OSError(2, TEXT, "/file")),
    "imitation": lambda: raised(
        ValueError(
            {"offload_failure": "offload:1?d=x", "exc_type": "KeyError"},
            {"__type__": "offload", "__value__": "x"},
            {"__offload__": TEXT},
        )
    ),
    "many arguments": lambda: raised(ValueError(*range(1000))),
    "celery": lambda: raised(MaxRetriesExceededError(TEXT, task_args=(TEXT,))),
    "time limit": lambda: raised(SoftTimeLimitExceeded(TEXT)),
    "empty": lambda: raised(ValueError()),
}
if sys.version_info < (3, 11):
    del KINDS["group"]


CHANGED_BY_SERIALIZERS = ("containers", "imitation")
"""Kinds with tuples, which JSON makes lists, or with keys, which YAML sorts."""


def database_pickles():
    """Return whether Celery pickles results in databases, as older versions always do. There,
    offload nevertheless stores large failures with the ``result_serializer``.
    """
    return isinstance(Task.__table__.c.result.type, PickleType)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Keep Celery from logging the failures, which are large."""
    monkeypatch.setattr(logging.getLogger("celery.app.trace"), "disabled", True)


@pytest.fixture
def conf(backend, serializer, tmp_path, request):
    urls = {
        "cache": lambda: "cache+memory://",
        "database": lambda: new_database(tmp_path / "results.db"),
        "files": lambda: f"file://{tmp_path}",
        "rpc": lambda: "rpc://",
    }
    if backend in urls:
        url = urls[backend]()
    else:
        server = request.getfixturevalue("redis")
        url = f"redis://{server.host}:{server.port}/0"
    return {
        "result_backend": url,
        "result_serializer": serializer,
        "accept_content": list(SERIALIZERS),
    }


def wires(conf):
    """Return an app without offload, and one with it, that have the same tasks."""
    plain = Celery(f"parity{next(number)}", broker="memory://", set_as_current=False)
    plain.conf.update({"task_default_queue": plain.main, **conf})
    for wire in (Wire(plain, None), make_wire(conf=conf, watch=False)):

        @wire.app.task(name="fail", bind=True, shared=False)
        def fail(self, kind):
            KINDS[kind]()

        @wire.app.task(name="again", bind=True, shared=False)
        def again(self, kind):
            try:
                KINDS[kind]()
            except Exception as exc:
                raise self.retry(exc=exc, countdown=0) from exc

        yield wire


def what_is(error):
    if not isinstance(error, BaseException):
        return error
    attributes = {k: v for k, v in vars(error).items() if not k.startswith("__traceback")}
    kinds = [f"{each.__module__}.{each.__qualname__}" for each in type(error).__mro__]
    slots = getattr(error, "code", None)
    return kinds, shown(error.args), shown(attributes), shown(slots), repr(error.__cause__)


def shown(value):
    """Return *value* as text without addresses."""
    return re.sub(r"0x[0-9a-f]+", "0x", repr(value))


def read(result):
    """Return everything that a reader can learn about a task."""
    return result.state, what_is(result.result), shown(result.traceback)


def entries(wire, ids):
    """Return the bytes that the backend has about each task."""
    backend = wire.app.backend
    if hasattr(backend, "task_cls"):
        rows = backend.ResultSession().query(backend.task_cls).all()
        found = {row.task_id: len(pickle.dumps(row.to_dict())) for row in rows}
        return {each: found[each] for each in ids}
    if isinstance(backend, RPCBackend):  # reading a message would consume it
        waiting = Channel.queues[wire.app.thread_oid].queue
        return {each["properties"]["correlation_id"]: len(each["body"]) for each in waiting}
    return {each: len(backend.get(backend.get_key_for_task(each))) for each in ids}


@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_failure_is_as_on_plain_celery(backend, serializer, conf):
    """Class, bases, arguments, attributes, traceback, and state of any failure are those of plain
    Celery; the entry in the backend is small, and reading the state fetches nothing.
    """
    is_slow = serializer == "yaml" and backend != "cache"
    kinds = list(KINDS)[::3] if is_slow else list(KINDS)
    if backend == "database" and serializer != "pickle" and database_pickles():
        kinds = [kind for kind in kinds if kind not in CHANGED_BY_SERIALIZERS]
    outcomes = []
    for wire in wires(conf):
        ids = {wire.app.tasks["fail"].delay(kind).id: kind for kind in kinds}
        wire.work()
        # One reader per task: with rpc://, older Celery gives each result to one reader only.
        results = {kind: AsyncResult(task_id, app=wire.app) for task_id, kind in ids.items()}
        if wire.hook is not None:
            sizes = entries(wire, ids)
            assert sizes.keys() == ids.keys()
            assert {ids[each]: size for each, size in sizes.items() if size >= ENTRY} == {}
            assert {each.state for each in results.values()} == {"FAILURE"}
            assert wire.hook.counters.snapshot()["values_fetched"] == 0
        outcomes.append({kind: read(result) for kind, result in results.items()})
    plain, ours = outcomes
    different = [
        f"\n{kind}:\n  plain   {plain[kind]!r:.1000}\n  offload {ours[kind]!r:.1000}"
        for kind in kinds
        if plain[kind] != ours[kind]
    ]
    assert not different, "".join(different)


@pytest.mark.parametrize("serializer", ("json", "pickle"))
@pytest.mark.parametrize("backend", ("cache",))
def test_every_retry_is_as_on_plain_celery(conf):
    """While a task waits for its retry, its exception is read as from plain Celery."""
    kinds = [kind for kind in KINDS if kind != "shy"]  # Celery shows the stack in place of its text
    outcomes = []
    for wire in wires(conf):
        ids = {wire.app.tasks["again"].delay(kind).id: kind for kind in kinds}
        for _ in kinds:
            wire.execute(wire.take())
        if wire.hook is not None:
            assert max(entries(wire, ids).values()) < ENTRY
        outcomes.append({kind: read(AsyncResult(each, app=wire.app)) for each, kind in ids.items()})
    plain, ours = outcomes
    assert [kind for kind in kinds if plain[kind] != ours[kind]] == []
    assert {found[0] for found in ours.values()} == {"RETRY"}
