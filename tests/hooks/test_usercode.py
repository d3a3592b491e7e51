"""User code that runs while a worker publishes sees the same values as in plain Celery."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from celery import Celery, Task, chain, chord, group, signals, signature
from celery.app import trace

from offload import Offload, Ref, StoreUnavailable
from tests.support.apps import current
from tests.support.wire import Wire, make_wire

ROWS = ["row"] * 1000
SERIALIZERS = ("json", "pickle", "msgpack")  # in YAML, plain Celery writes no signatures
_number = itertools.count()


class Sees:
    """What user code saw of each call: its arguments, and all that the message carries."""

    def __init__(self):
        self.calls = []
        self.receiver = None

    def call(self, name, args, kwargs, **embedded):
        found = {key: list(leaves(value)) for key, value in embedded.items() if value}
        self.calls.append((name, repr(args), repr(kwargs), found))


def leaves(value):
    """Yield the references and rows in what a message carries."""
    if isinstance(value, Ref) or value == ROWS:
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from leaves(each)
    elif isinstance(value, dict):
        for key in ("args", "kwargs", "options", "tasks", "header", "body", "chain", "link"):
            yield from leaves(value.get(key))
        for key, each in value.items():
            if key == "rows":
                yield from leaves(each)


def route(sees, app):
    def by_size(name, args, kwargs, options, task=None, **_):
        if name in ("target", "cleanup"):
            sees.call(name, args, kwargs)

    app.conf.task_routes = (by_size,)


def override(sees, app):
    class Shown(Task):
        def apply_async(self, args=None, kwargs=None, **options):
            embedded = {key: options.get(key) for key in ("chain", "chord", "link")}
            sees.call(self.name, args, kwargs, **embedded)
            return super().apply_async(args, kwargs, **options)

    return Shown


def receiver(sees, app):
    def shown(sender=None, body=None, **_):
        if sender in ("target", "cleanup"):
            args, kwargs, embed = body
            sees.call(sender, tuple(args), kwargs, chain=embed["chain"], chord=embed["chord"])

    sees.receiver = shown
    signals.before_task_publish.connect(shown)
    signals.after_task_publish.connect(shown)


def shadow(sees, app):
    class Shown(Task):
        def shadow_name(self, args, kwargs, options):
            sees.call(self.name, args, kwargs)

    return Shown


def nothing(sees, app):
    return Task


def changes_first(sees, app):
    class Changes(Task):
        def apply_async(self, args=None, kwargs=None, **options):
            for value in (*(args or ()), *(kwargs or {}).values()):
                if isinstance(value, list):
                    value.append("changed")
            return super().apply_async(args, kwargs, **options)

    return Changes


KINDS = {"route": route, "apply_async": override, "shadow_name": shadow, "signal": receiver}


def make_app(native, kind, *, plain, backend="cache+memory://"):
    conf = {"task_serializer": native, "result_serializer": native, "accept_content": [native]}
    number = next(_number)
    if plain:
        app = Celery(f"plain{number}", broker="memory://", set_as_current=False)
        app.conf.update(conf, result_backend=backend, task_default_queue=f"plain{number}")
        wire = Wire(app, None)
    else:
        wire = make_wire(conf=conf)
        wire.app.conf.result_backend = backend
    wire.sees = Sees()
    base = kind(wire.sees, wire.app) or Task
    app = wire.app

    def target(parts=None, rows=None, more=None):
        return [len(parts) if isinstance(parts, list) else parts, len(rows or ())]

    def echo(value=None):
        return value

    def fail():
        raise KeyError

    def peeks(callback):
        rows = (callback["kwargs"] or {}).get("rows") or callback["args"][0]
        wire.sees.call("peeks", repr(rows), type(rows).__name__)
        return len(rows)

    def calls(callback):
        signature(callback, app=app).apply_async()

    def changes(callback):
        callback["kwargs"]["rows"].append("changed")
        signature(callback, app=app).apply_async()

    def cleanup(*, rows):
        return len(rows)

    for function in (target, cleanup):
        app.task(name=function.__name__, base=base, shared=False)(function)
    for function in (echo, fail, peeks, calls, changes):
        app.task(name=function.__name__, shared=False)(function)
    app.finalize()
    for name, task in app.tasks.items():  # like a worker that starts
        trace.build_tracer(name, task, app=app)
    return wire


STEPS = {
    "chain": lambda t: chain(t["echo"].s(1), t["target"].s(rows=ROWS)),
    "chain, result": lambda t: chain(t["echo"].s(ROWS), t["target"].s(more=1)),
    "chain, later": lambda t: chain(
        t["echo"].s(1), t["target"].si(1), t["target"].s(rows=ROWS), t["target"].si(ROWS)
    ),
    "link": lambda t: t["echo"].s(ROWS).set(link=t["target"].s(rows=list(ROWS))),
    "chord body": lambda t: chord([t["echo"].s(n) for n in range(3)], t["target"].s(rows=ROWS)),
    "chord parts": lambda t: chord([t["echo"].s(ROWS) for _ in range(3)], t["target"].s()),
    "group": lambda t: chain(t["echo"].s(1), group([t["target"].s(rows=ROWS) for _ in "ab"])),
    "nested": lambda t: chain(
        t["echo"].si(1),
        chord([chain(t["target"].si(ROWS), t["target"].s(rows=ROWS))] * 2, t["target"].s(ROWS)),
    ),
    "errback": lambda t: t["fail"].si().set(link_error=t["cleanup"].si(rows=ROWS)),
}


def run(wire, step):
    with receiving(wire):
        step(wire.app.tasks).apply_async()
        wire.sees.calls.clear()  # what the publisher showed
        wire.work()


@contextlib.contextmanager
def receiving(wire):
    """Make the wire's app the current one; disconnect its receivers at the end."""
    try:
        with current(wire.app):
            yield
    finally:
        if wire.sees.receiver is not None:
            signals.before_task_publish.disconnect(wire.sees.receiver)
            signals.after_task_publish.disconnect(wire.sees.receiver)


@pytest.mark.parametrize("native", SERIALIZERS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_user_code_sees_values_in_every_step(native, kind):
    """Routes and overrides see values in each step, and no references, as in plain Celery."""
    for name, step in STEPS.items():
        if native == "msgpack" and name in ("group", "nested"):  # plain Celery can't read them
            continue
        plain = make_app(native, kind, plain=True)
        run(plain, step)
        offload = make_app(native, kind, plain=False)
        run(offload, step)
        assert sorted(map(repr, offload.sees.calls)) == sorted(map(repr, plain.sees.calls)), name
        assert plain.sees.calls, name
        assert "Ref" not in repr(offload.sees.calls), name


@pytest.mark.parametrize("native", SERIALIZERS)
@pytest.mark.parametrize("kind", (route, override, receiver))
@pytest.mark.parametrize("name", ("chain", "chain, later", "chord body", "errback", "link"))
def test_reading_a_value_does_not_serialize_or_store_it_again(native, kind, name):
    """What arrived by reference is passed on by it, even if user code reads it; without such code
    nothing is even fetched.
    """
    costs = {}
    for each in (nothing, kind):
        wire = make_app(native, each, plain=False)
        serialized = count_serialized(wire)
        with receiving(wire):
            STEPS[name](wire.app.tasks).apply_async()
            serialized.clear()
            wire.calls.clear()
            wire.work()
        costs[each] = [len(serialized), wire.calls.count("put")]
        costs[each, "get"] = wire.calls.count("get")
    assert costs[kind] == costs[nothing]
    assert costs[kind, "get"] > costs[nothing, "get"] or name == "chain"


def count_serialized(wire):
    writer, serialized = wire.hook._runtime.content.writer, []
    serialize = writer.serialize

    def counted(value, native):
        serialized.append(value)
        return serialize(value, native)

    writer.serialize = counted
    return serialized


@pytest.mark.parametrize("native", SERIALIZERS)
@pytest.mark.parametrize("name", ("chain", "chain, result", "link", "chord body", "chord parts"))
def test_changes_by_user_code_are_sent(native, name):
    """An override that changes an argument in place changes what is sent, as in plain Celery."""
    found = {}
    for plain in (True, False):
        wire = make_app(native, changes_first, plain=plain)
        seen = found[plain] = []
        wire.app.tasks["target"].run = lambda *args, seen=seen, **kwargs: seen.append(
            (args, kwargs)
        )
        trace.build_tracer("target", wire.app.tasks["target"], app=wire.app)
        with receiving(wire):
            STEPS[name](wire.app.tasks).apply_async()
            wire.work()
    assert "changed" in repr(found[True])
    assert repr(found[False]) == repr(found[True])


@pytest.mark.parametrize("native", SERIALIZERS)
@pytest.mark.parametrize("task", ("peeks", "calls", "changes"))
@pytest.mark.parametrize("nested", (False, True), ids=("itself", "of a callback"))
def test_a_signature_that_is_an_argument_holds_values(native, task, nested):
    """A task may inspect, call, or change a signature; passed on unchanged, its values aren't
    stored again.
    """
    found = {}
    for plain in (True, False):
        wire = make_app(native, override, plain=plain)
        tasks = wire.app.tasks
        callback = tasks["target"].si(0, rows=list(ROWS))
        call = tasks[task].s(callback)
        with receiving(wire):
            (chain(tasks["echo"].si(1), tasks[task].si(callback)) if nested else call).apply_async()
            wire.sees.calls.clear()
            wire.calls.clear()
            wire.work()
        found[plain] = wire.sees.calls
    assert found[False] == found[True]
    assert found[True]
    assert wire.calls.count("put") == (task == "changes")
    ttls = [info.ttl for info in wire.hook.store.blobs.scan()]
    assert max(ttls) <= wire.hook._runtime.grace + 60  # nothing is held any more


def test_user_code_sees_a_reference_that_the_task_wants():
    """An override of a task whose parameter is annotated Ref sees the Ref."""
    wire = make_app("json", nothing, plain=False)
    seen = []

    class Shown(Task):
        def apply_async(self, args=None, kwargs=None, **options):
            seen.append(type(kwargs["table"]))
            return super().apply_async(args, kwargs, **options)

    @wire.app.task(name="wants", base=Shown, shared=False)
    def wants(number, table: Ref):
        seen.append(table.get() == ROWS)

    trace.build_tracer("wants", wants, app=wire.app)
    with receiving(wire):
        chain(wire.app.tasks["echo"].s(1), wants.s(table=ROWS)).apply_async()
        wire.work()
    assert seen == [Ref, True]


@pytest.mark.parametrize("kind", (route, override, receiver))
def test_user_code_sees_a_reference_that_a_publisher_passes(kind):
    """Outside of tasks nothing is fetched: code sees the Ref that was passed, and the task sees the
    value.
    """
    wire = make_app("json", kind, plain=False)
    ref = wire.hook.put(ROWS)
    with receiving(wire):
        result = wire.app.tasks["target"].delay(1, rows=ref)
        assert "get" not in wire.calls
        assert "Ref" in repr(wire.sees.calls)
        wire.work()
        assert result.get() == [1, len(ROWS)]


def test_a_route_that_sees_a_value_often_has_it_fetched_once():
    """Within a task, references that are the same object are resolved once for all routes."""
    wire = make_app("json", route, plain=False)

    @wire.app.task(name="spreads", shared=False)
    def spreads(table: Ref):
        group([wire.app.tasks["target"].s(n, rows=table) for n in range(5)]).apply_async()

    with receiving(wire):
        spreads.delay(["small"])  # its task gets it as a Ref, too
        wire.work()
    assert "small" in repr(wire.sees.calls)
    assert "Ref" not in repr(wire.sees.calls)
    wire.sees.calls.clear()
    spreads.delay(ROWS)
    message = wire.take()
    wire.calls.clear()
    with receiving(wire):
        wire.execute(message)
    assert wire.calls.count("get") == 1
    assert len(wire.sees.calls) == 5


def test_an_apps_own_send_task_sees_values():
    """An app that overrides ``send_task`` sees values in the next step, as in plain Celery."""
    seen = []

    class Own(Celery):
        def send_task(self, name, args=None, kwargs=None, **options):
            seen.append((name, repr(args), repr(kwargs)))
            return super().send_task(name, args, kwargs, **options)

    shown = []
    for plain in (True, False):
        queue = f"own{next(_number)}"
        app = Own(queue, broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.task_default_queue = queue
        hook = None if plain else Offload(app, store=f"memory://{queue}", threshold=1000)
        echo = app.task(name="echo", shared=False)(returns)
        chain(echo.s(1), echo.s(more=ROWS)).apply_async()
        Wire(app, hook).work()
        shown.append(list(seen))
        seen.clear()
    assert shown[0] == shown[1]
    assert [name for name, *_ in shown[1]] == ["echo", "echo"]


def returns(value, more=None):
    return value


@pytest.mark.parametrize("kind", (route, override, receiver))
def test_a_task_that_is_sent_again_in_an_outage_shows_no_references(kind):
    """While the store is unavailable, a resent task doesn't call user code again, which saw its
    values when it was published, and runs when the store is back.
    """
    wire = make_app("json", kind, plain=False)
    with receiving(wire):
        result = wire.app.tasks["target"].delay(1, rows=ROWS)
        wire.sees.calls.clear()
        message, blobs, get = wire.take(), wire.hook.store.blobs, wire.hook.store.blobs.get

        def unavailable(*_args):
            raise StoreUnavailable("unavailable")

        object.__setattr__(blobs, "get", unavailable)
        wire.execute(message)
        object.__setattr__(blobs, "get", get)
        assert "Ref" not in repr(wire.sees.calls)
        assert wire.get(result) == [1, len(ROWS)]
