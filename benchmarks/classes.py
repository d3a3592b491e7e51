"""Question 11: how much does a class cost that workers don't have?

Compared with cloudpickle, which puts the class by value into every message. The class is in a
module that workers can't import. Both send the same small instance with pickle; offload also sends
it as JSON, which cloudpickle can't. Round trips are calls to the store's pointers, each of which
takes one on Redis.
"""

import types
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle
import kombu.serialization
from celery import Celery
from kombu.utils.json import dumps

from benchmarks.measure import alternately, cpu_of_calls, median, ratio, timed
from benchmarks.report import Judge, Scale
from offload import ClassRegistry, Offload, Ref
from offload.classes.hashing import code, identify
from offload.classes.scope import Scope
from offload.stores import open_store
from offload.stores.protocols import Store
from tests.support.servers import redis_server

TITLE = "Classes that workers don't have"
CLOUDPICKLE, OFFLOAD, ONE_BY_ONE = "cloudpickle", "offload", "one by one"
_METHODS = 50
_CHANGED = 3
_HELPERS = """
from dataclasses import dataclass

LIMIT = 100

def scaled(value, factor=2):
    return [each * factor for each in value if each is not None]
"""
_METHOD = """
    def step_{n}(self, rows, limit=LIMIT, *, strict=False):
        '''Keep the rows of step {n} that are in bounds.'''
        kept, total = [], 0
        for row in scaled(rows, {n}):
            if row > limit or (strict and row == {n}):
                raise ValueError(f"row {{row}} of step {n} is over {{limit}}")
            total += row
            kept.append((row, total, self.name))
        return sorted(kept, key=lambda item: item[1])
"""


def run(scale: Scale, judge: Judge) -> None:
    _hash(scale, judge)
    with redis_server() as server:
        _message(server.url, scale, judge)
        _pull(server.url, scale, judge)
        _push_all(server.url, scale, judge)


def _class(methods: int, name: str = "Pipeline", salt: str = "") -> Any:
    """Return a class in its own module, which can't be imported."""
    body = "".join(_METHOD.format(n=n) for n in range(methods))
    text = f"{_HELPERS}\n@dataclass\nclass {name}:\n    name: str = 'x{salt}'\n{body}"
    module = types.ModuleType("steps")
    exec(text, module.__dict__)  # noqa: S102 (source made here)
    return getattr(module, name)


def _hash(scale: Scale, judge: Judge) -> None:
    for methods, most in ((10, 1.0), (50, 10.0)):
        cls = _class(methods)

        def cold(cls: Any = cls) -> None:
            code._normalized.clear()
            identify(cls, Scope())

        times = [cpu_of_calls(cold, 5) for _ in range(scale.rounds)]
        judge.row(
            f"hash of a class of {methods} methods, met for the first time",
            "ms",
            {OFFLOAD: median(times) * 1e3},
            at_most=most,
            of="ms",
        )


def _app(url: str, serializer: str, **settings: Any) -> Celery:
    app = Celery("classes", broker="memory://", set_as_current=False)
    app.conf.update(task_serializer=serializer, accept_content=["json", "pickle"])
    app.offload = Offload(app, store=url, **settings)
    app.task(_take, name="take")
    return app


def _take(value: Any) -> None:
    del value


def _message(url: str, scale: Scale, judge: Judge) -> None:
    value = _class(_METHODS)("a pipeline")
    apps = {
        CLOUDPICKLE: _app(url, "pickle", code="off"),
        OFFLOAD: _app(url, "pickle", code="trusted"),
    }
    as_json = _app(url, "json", code="trusted")
    send = {way: _sender(app, value) for way, app in apps.items()}
    sizes = {way: float(make()) for way, make in send.items()}
    judge.row(
        f"message with an instance of a class of {_METHODS} methods",
        "bytes",
        sizes,
        ratio=sizes[CLOUDPICKLE] / sizes[OFFLOAD],
        at_least=10,
    )
    judge.row("… as JSON", "bytes", {OFFLOAD: float(_sender(as_json, value)())})
    _cpu("… its publishing, CPU", send, scale, judge)
    read = {way: _reader(app, value) for way, app in apps.items()}
    _cpu("… its reading, CPU", read, scale, judge)
    raw = {CLOUDPICKLE: lambda: cloudpickle.dumps(value, protocol=5)}
    judge.row(
        "… cloudpickle alone, CPU", "ms", {CLOUDPICKLE: cpu_of_calls(raw[CLOUDPICKLE], 20) * 1e3}
    )


def _cpu(what: str, ways: dict[str, Callable[[], Any]], scale: Scale, judge: Judge) -> None:
    found = alternately(
        {way: lambda call=call: cpu_of_calls(call, 20) for way, call in ways.items()},
        scale.rounds,
    )
    judge.row(
        what,
        "ms",
        {way: median(times) * 1e3 for way, times in found.items()},
        ratio=ratio(found[CLOUDPICKLE], found[OFFLOAD]),
    )


def _sender(app: Celery, value: Any) -> Callable[[], int]:
    """Return a function that builds a message and returns its size in bytes."""

    def make() -> int:
        message = app.amqp.create_task_message("an-id", "take", (value,), {})
        serializer = app.conf.task_serializer
        _, _, body = kombu.serialization.dumps(message.body, serializer=serializer)
        return len(body) + len(dumps(message.headers))

    make()
    return make


def _reader(app: Celery, value: Any) -> Callable[[], Any]:
    ref: Ref[Any] = app.offload.put(value)
    content = app.offload._runtime.content

    def read() -> Any:
        return content.open(ref.wire).get()

    read()
    return read


def _pull(url: str, scale: Scale, judge: Judge) -> None:
    cls = _class(_METHODS, "Pulled")
    pushed = ClassRegistry(url).push(cls)
    name = f"{cls.__module__}.{cls.__qualname__}"
    first: list[float] = []
    again: list[float] = []
    for _ in range(scale.rounds):
        registry = ClassRegistry(url, mode="trusted")
        registry.store.pointers.read("warm")  # a connection
        first.append(timed(lambda registry=registry: registry.pull(name, pushed)))
        again.append(timed(lambda registry=registry: registry.pull(name, pushed)))
    judge.row(f"first pull of a class of {_METHODS} methods", "ms", {OFFLOAD: median(first) * 1e3})
    judge.row("… again in the process", "ms", {OFFLOAD: median(again) * 1e3})


def _push_all(url: str, scale: Scale, judge: Judge) -> None:
    names = [f"Stage{n}" for n in range(scale.classes)]
    before = [_class(3, name) for name in names]
    after = [_class(3, name, "changed" * (n < _CHANGED)) for n, name in enumerate(names)]
    trips: dict[str, float] = {}
    times: dict[str, float] = {}
    for way in (OFFLOAD, ONE_BY_ONE):
        store = open_store(f"{url}?prefix=push-{way.replace(' ', '-')}")
        ClassRegistry(store).push_all(before)
        counted = _Counted(store)
        registry = ClassRegistry(counted)
        push = registry.push_all if way == OFFLOAD else _one_by_one(registry)
        times[way] = timed(lambda push=push: push(after)) * 1e3
        trips[way] = float(counted.calls)
        assert {registry.check_status(cls) for cls in after} == {"synced"}
    what = f"pushing {scale.classes} classes of which {_CHANGED} changed"
    judge.row(f"{what}: round trips", "calls", trips, ratio=trips[ONE_BY_ONE] / trips[OFFLOAD])
    judge.row(f"{what}: time", "ms", times, ratio=times[ONE_BY_ONE] / times[OFFLOAD])


def _one_by_one(registry: ClassRegistry) -> Callable[[Sequence[Any]], None]:
    def push(classes: Sequence[Any]) -> None:
        for cls in classes:
            registry.push(cls)

    return push


class _Counted:
    """A store that counts the calls of its pointers."""

    def __init__(self, store: Store) -> None:
        self.url, self.pointers, self.calls = store.url, self, 0
        self._pointers = store.pointers

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._pointers, name)

        def counted(*args: Any) -> Any:
            self.calls += 1
            return call(*args)

        return counted
