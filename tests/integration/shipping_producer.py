"""The producer: a script, so that workers can't import its classes.

Arguments: what to do.
"""

from __future__ import annotations

import base64
import importlib
import os
import re
import sys
from pathlib import Path

from celery import Celery, chain, chord, group
from celery.exceptions import ChordError
from celery.result import AsyncResult

from offload import Offload
from offload.errors import CodeRefused, SerializationError, VersionMissing
from tests.integration.shipping_app import Own, app
from tests.support.processes import wait_until

TIMEOUT = 60
CELLS = Path(__file__).parents[1] / "classes" / "cells.py"
exec(compile(CELLS.read_text(), str(CELLS), "exec"))  # like a notebook's cells
offload = app.offload
task = app.tasks


def pushed():
    return offload.counters.snapshot()["classes_pushed"]


def got(signature):
    return signature.delay().get(timeout=TIMEOUT)


def values():
    """Every kind of instance behaves the same in the worker and returns home."""
    for name, make in VALUES.items():  # noqa: F821 (of the cells)
        value = make()
        was = state(value)  # noqa: F821
        ran, home = task["run"].delay(value), task["echo"].delay(value)
        assert ran.get(timeout=TIMEOUT) == repr(value.run()), name
        back = home.get(timeout=TIMEOUT)
        assert type(back) is type(value), name
        assert state(back) == was, name  # noqa: F821


def callables():
    """Functions and callables made of them can be called in the worker."""
    for name, (function, *args) in CALLABLES.items():  # noqa: F821
        assert got(task["call"].s(function, *args)) == repr(function(*args)), name
        assert repr(got(task["echo"].s(function))(*args)) == repr(function(*args)), name
    for function in (np.sum, len):  # noqa: F821 (of the cells)
        assert got(task["call"].s(function, [1, 2])) == repr(function([1, 2]))
        assert got(task["echo"].s([function])) == [function]


def canvases():
    """Chains, groups, chords, links, and retries pass instances on."""
    echo, gather = task["echo"], task["gather"]
    point, network = Point(7), Network(np.ones(50_000))  # noqa: F821
    for value in (point, network):
        back = got(chain(echo.s(value), echo.s(), task["retried"].s()))
        assert type(back[0]) is type(value)
        parts, kinds = got(chord([echo.s(value), echo.s(value)], gather.s()))
        assert kinds == 1
        assert [type(part) for part in parts] == [type(value)] * 2
        assert [type(each) for each in got(group(echo.s(value), echo.s([value])))] == [
            type(value),
            list,
        ]
        mapped, kinds = got(gather.s([value, value]))
        assert kinds == 1
        assert type(mapped[0]) is type(value)
        ref = offload.put({"value": value})
        assert type(got(echo.s(ref))["value"]) is type(value)
    linked = echo.apply_async((1,), link=task["run"].si(point))
    assert linked.get(timeout=TIMEOUT) == 1


REDEFINED = """
class Point:
    def __init__(self, x): self.x = x
    def run(self): return 'second'
"""


def versions():
    """When a class is redefined while its first version is in use, each behaves as sent."""
    first = Point(1)  # noqa: F821
    waiting = task["wait"].delay("go", first)
    exec(REDEFINED, globals())
    second = Point(2)  # noqa: F821
    assert got(task["run"].s(second)) == "'second'"
    app.backend.client.rpush("go", 1)
    assert waiting.get(timeout=TIMEOUT) == "1001"
    back = got(task["echo"].s([first, second, first]))
    assert [type(each) for each in back] == [type(first), type(second), type(first)]
    assert type(first) is not type(second)


def same_class():
    """All tasks of a process see one class, which each process loads once; nothing is uploaded
    twice, and messages contain no code.
    """
    found = group(task["seen_before"].s(Rich()) for _ in range(20)).delay()  # noqa: F821
    seen = found.get(timeout=TIMEOUT)
    assert pushed() == 1
    assert all(same for _pid, same, _loaded in seen)
    for pid in {pid for pid, _, _ in seen}:
        assert len({loaded for each, _, loaded in seen if each == pid}) == 1
    task["echo"].apply_async((Rich(),), queue="nobody")  # noqa: F821
    [message] = app.connection().default_channel.client.lrange("nobody", 0, -1)
    texts = [message]
    for _ in range(3):  # the body, the reference in it, the value in that
        found = (re.findall(rb"[A-Za-z0-9+/_-]{24,}", text) for text in texts)
        texts += [base64.b64decode(each + b"==", b"-_") for some in found for each in some]
    everything = b"\n".join(texts)
    assert b"__main__.Rich" in everything
    for absent in (b"doubled", b"partialmethod", b"Twice", b"later", b"cloudpickle"):
        assert absent not in everything
    assert len(message) < 2500, len(message)


def registered():
    """A class that only the producer can import is shipped once it is registered, automatically or
    after a push.
    """
    shop = importlib.import_module("shop_of_the_producer")
    offload.classes.register(shop.Order)
    back = got(task["echo"].s(shop.Order(3)))
    assert type(back) is shop.Order
    assert got(task["run"].s(back)) == "3"
    assert [version.hash for version in offload.classes.versions("shop_of_the_producer.Order")]
    manual = importlib.import_module("manual_of_the_producer")
    offload.classes.register(manual, push="manual")
    try:
        task["run"].delay(manual.Order(4))
    except VersionMissing as exc:
        assert "push='manual'" in str(exc)  # noqa: PT017 (no pytest here)
    else:
        raise AssertionError
    assert "manual_of_the_producer.Order" in offload.classes.push_all()
    assert got(task["run"].s(manual.Order(4))) == "4"


class Mismatched(Exception):
    """An exception whose args differ from its constructor's."""

    def __init__(self, code, where):
        super().__init__(f"{code} at {where}")
        self.code = code


class NoKey(KeyError):
    pass


class NoFile(OSError):
    pass


def failing(kind, *args):
    raise kind(*args)


def readers():
    """Return apps that read results without code, and without offload."""
    backend = app.conf.result_backend
    serializer = app.conf.result_serializer
    made = [Celery(each, backend=backend, set_as_current=False) for each in ("no code", "plain")]
    for each in made:
        each.conf.update(accept_content=app.conf.accept_content, result_serializer=serializer)
    Offload(made[0], store=offload.settings.store)
    return made


def exceptions():
    """Exceptions of shipped classes arrive with their class, arguments, and attributes; readers
    without code, or without offload, get Celery's fallback, and no error.
    """
    shop = importlib.import_module("shop_of_the_producer")
    offload.classes.register(shop)
    network = Network(np.ones(50_000))  # noqa: F821
    failures = [
        (Mismatched, (3, "home"), ("3 at home",), Exception),
        (NoKey, ("k",), None, KeyError),
        (NoKey, ("k", network), None, Exception),
        (NoFile, (2, "gone"), None, OSError),
        (shop.Closed, ("late",), None, Exception),
    ]
    for kind, given, expected, parent in failures:
        result = task["call"].apply_async(
            (failing, kind, *given), link_error=task["note_error"].s()
        )
        try:
            result.get(timeout=TIMEOUT)
        except kind as exc:
            assert type(exc) is kind  # noqa: PT017 (no pytest here)
            assert [str(each) for each in exc.args][:1] == [str((expected or given)[0])]  # noqa: PT017
            assert getattr(exc, "code", 3) == 3  # noqa: PT017
            assert kind is not NoFile or exc.errno == 2  # noqa: PT017
            if network in given:
                assert exc.args[1].run() == network.run()  # noqa: PT017
        assert result.state == "FAILURE"
        assert kind.__name__ in result.traceback
        for other in readers():
            exc = AsyncResult(result.id, app=other).result
            assert isinstance(exc, parent), (kind, exc)
        _, error = app.backend.client.blpop("errors", timeout=TIMEOUT)
        assert error.decode().split()[1] == kind.__name__, error
    try:
        got(chord([task["call"].s(failing, NoKey, "k"), task["echo"].s(1)], task["gather"].s()))
    except (ChordError, NoKey) as exc:  # of the body, or of the part, which may be seen first
        assert "NoKey('k')" in repr(exc)  # noqa: PT017
    else:
        raise AssertionError


def own():
    """A class that both sides import is sent as in plain Celery."""
    try:
        back = got(task["echo"].s(Own(3)))
    except SerializationError as exc:
        assert app.conf.task_serializer == "json"
        assert "offload.classes.register(tests.integration" in str(exc)  # noqa: PT017
    else:
        assert app.conf.task_serializer == "pickle"
        assert (type(back), back.value) == (Own, 3)
    assert not pushed()


def refers():
    """A class that uses the app gets the worker's, with its tasks."""

    class Local:
        def run(self):
            return app.main, echo.name, echo.app is app, offload.app is app

    echo = task["echo"]
    assert got(task["run"].s(Local())) == "('shipping', 'echo', True, True)"


def refused():
    """A worker that accepts no code fails the task at once, and runs none of the class."""
    path = os.environ["SHIPPING_WRITES"]
    Point.note = Writing(path)  # noqa: F821
    result = task["echo"].apply_async((Point(1),), link_error=task["note_error"].s())  # noqa: F821
    try:
        result.get(timeout=TIMEOUT)
    except CodeRefused as exc:
        assert "__main__.Point@" in str(exc)  # noqa: PT017
        assert "offload_code is 'off'" in str(exc)  # noqa: PT017
    else:
        raise AssertionError
    wait_until(lambda: app.backend.client.llen("errors"), "the error callback is called", TIMEOUT)
    assert not Path(path).exists()


class Writing:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def missing():
    """A version that was removed from the store fails the task at once."""
    value = Point(1)  # noqa: F821
    offload.put(value)
    pointers = offload.store.pointers
    for name in list(pointers.names("plugins/__main__.Point/")):
        pointers.swap(name, pointers.read(name), None)
    try:
        got(task["echo"].s(value))
    except LookupError as exc:
        raise AssertionError from exc
    except (FileNotFoundError, ValueError) as exc:
        assert "__main__.Point" in str(exc)  # noqa: PT017
    else:
        raise AssertionError


def send():
    """Send one instance, print when it is sent, and wait for its result."""
    result = task["run"].delay(Point(5))  # noqa: F821
    print("sent", flush=True)
    assert result.get(timeout=TIMEOUT) == "1005"


def many():
    """Send several instances and wait for all."""
    results = [task["run"].delay(Child()) for _ in range(8)]  # noqa: F821
    expected = repr(Child().run())  # noqa: F821
    assert [result.get(timeout=TIMEOUT) for result in results] == [expected] * 8


def ahead():
    """Waiting tasks are prefetched while the only child is busy; `inspect` shows references, and
    the worker's main process loads no code.
    """
    first = task["wait"].delay("go", Point(1))  # noqa: F821
    network = Network(np.arange(400_000.0))  # noqa: F821
    second = task["run"].delay(network)
    cache = Path(os.environ["SHIPPING_CACHE"])
    wait_until(lambda: list(cache.glob("*-*")), "the second one's value is cached", TIMEOUT)
    shown = []

    def look():
        shown[:] = [str(app.control.inspect().active()), str(app.control.inspect().reserved())]
        return "wait" in shown[0] and "run" in shown[1]

    wait_until(look, "the tasks are shown", TIMEOUT)
    assert all("<Ref " in text for text in shown), shown
    app.backend.client.rpush("go", 1)
    assert first.get(timeout=TIMEOUT) == "1001"
    assert second.get(timeout=TIMEOUT) == repr(network.run())
    counters = got(task["counters"].s())
    assert counters["cache_hits"] == 1, counters


if __name__ == "__main__":
    for name in sys.argv[1:]:
        globals()[name]()
        print("done", name, flush=True)
