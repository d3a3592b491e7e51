"""Faults during publishing raise a typed error from ``.delay()`` and leave nothing half done."""

from __future__ import annotations

import json
import socket
import threading
import time
import weakref

import kombu.exceptions
import numpy as np
import pytest
from celery import chain, chord, group
from faults import BIG, QUICK

from offload.errors import SerializationError, StoreError, StoreUnavailable, ValueTooLarge
from tests.support.processes import wait_until
from tests.support.servers import redis_server

pytestmark = [pytest.mark.server, pytest.mark.timeout(60)]


class Stubborn:
    """Can't be pickled, and has a long, multi-line repr."""

    def __reduce__(self):
        raise TypeError("no")

    def __repr__(self):
        return "<stubborn " + "y" * 5000 + ">"


class Silent(Stubborn):
    def __repr__(self):
        raise RuntimeError("no repr")


def a_generator():
    yield 1


UNCARRIABLE = {
    "lock": threading.Lock,
    "socket": socket.socket,
    "generator": a_generator,
    "stubborn": Stubborn,
    "silent": Silent,
    "weakref": lambda: weakref.ref(a_generator),
    "thread": lambda: threading.current_thread(),
    "cycle": lambda: (lambda a: a.append(a) or [a, threading.Lock()])([]),
}


@pytest.fixture(scope="module")
def pickling(broker, store, tmp_path_factory):
    from faults import make_setup

    conf = {"task_serializer": "pickle", "accept_content": ["json", "pickle"]}
    with make_setup(broker, store, tmp_path_factory.mktemp("pickling"), conf) as made:
        yield made


@pytest.fixture(params=("json", "pickle"))
def either(request, setup, pickling):
    if request.param == "json":
        return setup
    pickling.broker.flushall()
    pickling.stored.flushall()
    return pickling


def nothing_happened(setup):
    """Assert that nothing was sent or stored: the servers have no keys except statistics."""
    assert not setup.messages()
    assert not [key for key in setup.stored.keys("*") if not key.startswith(b"offload:{stats}")]


@pytest.mark.parametrize("kind", UNCARRIABLE)
@pytest.mark.parametrize("place", ("first", "second", "keyword", "nested"))
def test_a_value_that_cannot_be_serialized(either, kind, place, request):
    """`.delay()` raises SerializationError with argument and type but without the value, also next
    to a large value that could be stored; nothing is sent or stored.
    """
    bad = UNCARRIABLE[kind]()
    if kind == "socket":
        request.addfinalizer(bad.close)
    task = either.task("take")
    calls = {
        "first": (lambda: task.delay(bad, config=BIG), "value"),
        "second": (lambda: task.delay(BIG, bad), "config"),
        "keyword": (lambda: task.delay(value=BIG, other=bad), "other"),
        "nested": (lambda: task.delay(BIG, {"deep": [1, (bad,)]}), "config"),
    }
    call, argument = calls[place]
    with pytest.raises(SerializationError) as error:
        call()
    assert isinstance(error.value, kombu.exceptions.EncodeError)
    assert error.value.task == "take"
    assert error.value.argument == argument
    message = str(error.value)
    assert f"task 'take', {argument}:" in message
    shown = type(bad).__name__ if place != "nested" else "dict"
    assert shown in message
    assert len(message) < 700
    assert "<stubborn yyyy" not in message
    nothing_happened(either)


def test_in_signatures_within_a_message(either):
    """The error is the same for a value in a signature within the message: a link, an error
    callback, a chain's later task, a chord's body.
    """
    task, bad = either.task("size"), threading.Lock()
    good = task.si(BIG)
    for canvas in (
        lambda: task.apply_async((BIG,), link=task.si(bad)),
        lambda: task.apply_async((BIG,), link_error=task.si(bad)),
        lambda: chain(good, task.si(BIG), task.si(bad)).delay(),
        lambda: chain(good, chord([good, task.si(bad)], good)).delay(),
        lambda: chord([good, good], task.si({"a": bad})).delay(),
        lambda: chain(good, group(good, task.si(bad))).delay(),
    ):
        with pytest.raises(SerializationError, match=r"task 'size', value.* lock"):
            canvas()
        nothing_happened(either)


def test_an_inline_argument_is_refused_as_well(setup):
    """An inline argument that can't be serialized gets the same error, and its neighbor isn't
    stored.
    """
    with pytest.raises(SerializationError, match="config"):
        setup.task("take").apply_async(
            (BIG,), {"config": threading.Lock()}, offload={"inline": ["config"]}
        )
    nothing_happened(setup)


def test_without_pickle_the_error_says_what_would_help(setup):
    """The error suggests plain data, or pickle if that could serialize the value but isn't
    accepted.
    """
    with pytest.raises(SerializationError, match="add 'pickle' to accept_content"):
        setup.task("size").delay(type("Own", (), {})())
    nothing_happened(setup)


# -- unavailable store


@pytest.mark.parametrize("fault", ("refuse", "blackhole", "cut", "stopped"))
def test_an_unreachable_store(setup, fault):
    """After its retries, `.delay()` raises StoreUnavailable, also a kombu OperationalError, with
    task, argument, and store, within bounded time; nothing is sent.
    """
    _ = setup.offload._runtime.content.signing.keys
    with redis_server() as server:
        app = setup.app
        if fault == "stopped":
            app = setup.publisher(store=f"{server.url}?socket_timeout=0.5")
            _ = app.stowaway._runtime.content.signing.keys
            server.stop()
        elif fault == "cut":
            app = setup.publisher(compression="none")
            _ = app.stowaway._runtime.content.signing.keys
            setup.proxy.cut_after(10_000)  # during the upload
        else:
            getattr(setup.proxy, fault)()
        before = app.stowaway.counters.snapshot()
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match="check that it runs") as error:
            setup.task("size", app).delay(BIG + "not seen before" * 1000)
        assert time.monotonic() - start < 60
    assert isinstance(error.value, kombu.exceptions.OperationalError)
    assert error.value.task == "size"
    assert error.value.argument == "value"
    assert error.value.store in str(error.value)
    assert not setup.messages()
    after = app.stowaway.counters.snapshot()
    retries = after["store_retries"] - before["store_retries"]
    assert retries in (QUICK["max_retries"], QUICK["max_retries"] + 1)  # one for a dead connection


def test_a_store_that_was_never_reached(setup):
    """The error is the same in a process that never reached the store and has no signing key."""
    setup.proxy.refuse()
    with pytest.raises(StoreUnavailable) as error:
        setup.task("size").delay(BIG)
    assert error.value.argument == "value"
    assert not setup.messages()


def test_publishing_continues_when_the_store_is_back(setup):
    """If the store comes back during the retries, publishing succeeds with a delay."""
    app = setup.publisher(retry={"max_retries": 50, "interval_start": 0.05, "interval_max": 0.1})
    _ = app.stowaway._runtime.content.signing.keys
    setup.proxy.refuse()
    counters = app.stowaway.counters
    result = []
    thread = threading.Thread(target=lambda: result.append(setup.task("size", app).delay(BIG)))
    thread.start()
    wait_until(lambda: counters.snapshot()["store_retries"] >= 2, "publishing is retried", 10)
    setup.proxy.restore()
    thread.join(20)
    assert result
    assert len(setup.messages()) == 1
    assert len(setup.blobs()) == 1


def test_small_arguments_need_no_store(setup):
    """While the store is unavailable, tasks with small arguments are published."""
    setup.proxy.refuse()
    setup.task("size").delay("small")
    assert setup.body()[0] == ["small"]


@pytest.fixture
def forgiving(setup):
    """Return a publisher that sends values in the message while the store is unavailable."""
    return setup.publisher(
        on_outage="inline", inline_limit=100_000, secret="a secret for the tests of faults"
    )


@pytest.mark.parametrize("fault", ("refuse", "blackhole"))
def test_values_can_be_inline_in_an_outage(setup, forgiving, fault):
    """With on_outage="inline", a value up to inline_limit is sent in the message, complete and
    without a reference, and counted.
    """
    getattr(setup.proxy, fault)()
    setup.task("size", forgiving).delay(BIG)
    assert setup.body()[0] == [BIG]
    assert forgiving.stowaway.counters.snapshot()["outage_inline"] == 1


def test_inline_values_that_json_cannot_serialize(setup, forgiving):
    """A value that the message's serializer can't write is sent within a signed reference."""
    setup.proxy.refuse()
    value = {("tuple", n) for n in range(1000)}
    setup.task("size", forgiving).delay(value)
    assert list(setup.body()[0][0]) == ["__offload__"]
    assert forgiving.stowaway.counters.snapshot()["outage_inline"] == 1
    wire = setup.body()[0][0]["__offload__"]
    assert forgiving.stowaway._runtime.content.open(wire).get() == value


@pytest.mark.parametrize("items", (10_000, 300_000))
def test_arrays_are_inline_up_to_the_limit(setup, items):
    """JSON can't serialize an array; up to the limit it is sent in a signed reference."""
    publisher = setup.publisher(
        on_outage="inline", inline_limit=10_000_000, secret="a secret for the tests of faults"
    )
    setup.proxy.refuse()
    setup.task("size", publisher).delay(np.arange(items))
    wire = setup.body()[0][0]["__offload__"]
    assert len(publisher.stowaway._runtime.content.open(wire).get()) == items


def test_without_a_key_an_array_cannot_be_inline(setup):
    """A process without a signing key names the setting that provides one."""
    publisher = setup.publisher(on_outage="inline")
    setup.proxy.refuse()
    with pytest.raises(StoreUnavailable, match="set offload_secret"):
        setup.task("size", publisher).delay(np.arange(10_000))


def test_over_the_inline_limit_an_outage_is_an_error(setup, forgiving):
    """A value over inline_limit raises, in every message that contains one."""
    setup.proxy.refuse()
    with pytest.raises(StoreUnavailable, match="value"):
        setup.task("size", forgiving).delay("x" * 100_001)
    with pytest.raises(StoreUnavailable, match="config"):
        setup.task("take", forgiving).delay(BIG, "x" * 100_001)
    assert not setup.messages()


def test_an_outage_during_the_upload_leaves_no_message(setup):
    """If the store fails at any point while several values are uploaded, nothing is sent; the same
    call later sends everything.
    """
    values = [chr(97 + i) * 30_000 for i in range(3)]
    app = setup.publisher(compression="none", retry={"max_retries": 0})
    _ = app.stowaway._runtime.content.signing.keys
    for cut in (100, 20_000, 45_000, 80_000):
        setup.stored.delete(*setup.blobs(), "none")
        app.stowaway.store.close()
        setup.proxy.cut_after(cut)
        with pytest.raises(StoreUnavailable):
            setup.task("take_anything", app).delay(*values)
        assert not setup.messages()
    setup.proxy.restore()
    setup.task("take_anything", app).delay(*values)
    assert len(setup.messages()) == 1
    assert len(setup.blobs()) == 3


def test_leftovers_expire(setup):
    """Values uploaded for a message that was never sent expire."""
    app = setup.publisher(compression="none", retry={"max_retries": 0}, retention=60)
    _ = app.stowaway._runtime.content.signing.keys
    app.stowaway.store.close()  # the fault uses up no connection of the pool
    setup.proxy.cut_after(45_000)
    with pytest.raises(StoreUnavailable):
        setup.task("take_anything", app).delay("x" * 30_000, "y" * 30_000)
    assert setup.blobs()
    for key in setup.blobs():
        assert 0 < setup.stored.ttl(key) <= 60 * 1.25 + 60


# -- limits


def test_over_the_largest_size(setup):
    """A value over offload_max_size is refused with both sizes; nothing is sent or stored."""
    app = setup.publisher(max_size=50_000)
    with pytest.raises(ValueTooLarge, match=r"'size', value: a str of 60\.0 kB .*50\.0 kB"):
        setup.task("size", app).delay(BIG)
    nothing_happened(setup)


def test_a_full_store_says_what_to_do(setup):
    """A store at its maxmemory raises StoreUnavailable, which says what to raise or lower."""
    with redis_server(args=("--maxmemory", "2mb", "--maxmemory-policy", "noeviction")) as full:
        app = setup.publisher(store=full.url, compression="none")
        with pytest.raises(StoreUnavailable, match=r"memory is full: raise maxmemory, or lower"):
            setup.task("size", app).delay("x" * 4_000_000)
    assert not setup.messages()


def test_a_read_only_store(setup):
    """A replica that refuses writes raises StoreUnavailable, which says that it is one."""
    with redis_server() as replica:
        app = setup.publisher(store=replica.url)
        _ = app.stowaway._runtime.content.signing.keys
        from tests.support.servers import redis_client

        with redis_client(replica) as client:
            client.replicaof("127.0.0.1", 1)
            with pytest.raises(StoreUnavailable, match="read-only replica"):
                setup.task("size", app).delay(BIG)
    assert not setup.messages()


# -- secrecy

PASSWORD = "hunter2-very-secret"


@pytest.fixture
def guarded():
    with redis_server(args=("--requirepass", PASSWORD)) as server:
        yield server


def test_passwords_are_not_shown(setup, guarded, caplog):
    """No error, reference, message, log, or repr shows a store's password."""
    url = f"redis://user:{PASSWORD}@{guarded.host}:{guarded.port}/0"
    shown = []
    wrong = setup.publisher(store=url)  # there is no such user
    with pytest.raises(StoreError, match="check user name, password") as error:
        setup.task("size", wrong).delay(BIG)
    shown += [str(error.value), repr(error.value), repr(vars(error.value))]
    right = setup.publisher(store=url.replace("user:", ":"))
    setup.task("size", right).delay(BIG)
    shown += [json.dumps(setup.messages()[0][0]), setup.messages()[0][1].decode()]
    guarded.stop()
    with pytest.raises(StoreUnavailable) as error:
        setup.task("size", right).delay(BIG + "x")
    shown += [str(error.value), repr(vars(error.value)), caplog.text]
    hook = right.stowaway
    shown += [repr(hook), repr(hook.settings), repr(hook.store), repr(hook._runtime.content)]
    for text in shown:
        assert PASSWORD not in text, text
