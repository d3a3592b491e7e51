"""Holds from publishing to release, on a memory store, with messages as bytes."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from billiard.einfo import ExceptionInfo
from celery import chain, chord, group, signals, states
from celery.app.amqp import Queues
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded, WorkerLostError
from celery.utils.time import maybe_iso8601
from celery.worker.request import Request
from celery.worker.state import revoked
from kombu import Connection, Exchange, Queue
from kombu.serialization import prepare_accept_content

from offload import BlobMissing, ConfigurationError, Ref
from offload.hooks.release import Releaser, is_done
from offload.hooks.runtime import redelivery_time
from tests.support.wire import make_wire

BIG = list(range(2000))
HOUR = 3600.0
NEXT = datetime(datetime.now().year + 1, 2, 1)


def reads_months():
    """Whether this Celery accepts a month as an ETA."""
    try:
        maybe_iso8601("2030-02")
    except ValueError:
        return False
    return True


@pytest.fixture
def wire():
    return make_wire(retention=10 * HOUR, grace=HOUR, conf={"result_expires": 5 * HOUR})


@pytest.fixture
def tasks(wire):
    app = wire.app

    class Tasks:
        @app.task(name="size", shared=False)
        def size(value, *more):
            return len(value)

        @app.task(name="echo", shared=False)
        def echo(value, *more):
            return value

        @app.task(name="silent", shared=False, ignore_result=True)
        def silent(value):
            return value

        @app.task(name="fails", shared=False)
        def fails(value):
            raise RuntimeError("as it is meant to")

        @app.task(name="late", shared=False, acks_late=True, acks_on_failure_or_timeout=False)
        def late(value):
            raise RuntimeError("as it is meant to")

        @app.task(name="acked", shared=False, acks_late=True)
        def acked(value):
            return len(value)

        @app.task(name="ends", shared=False)
        def ends(value, how):
            raise {"reject": Reject("no"), "ignore": Ignore()}[how]

        @app.task(name="again", shared=False, bind=True, max_retries=2)
        def again(self, value, other=None):
            if self.request.retries < 2:
                raise self.retry(countdown=0, args=(value,), kwargs={"other": other})
            return len(value)

        @app.task(name="replaced", shared=False, bind=True)
        def replaced(self, value):
            return self.replace(Tasks.size.s(value))

        @app.task(name="looks", shared=False)
        def looks(value: Ref, seen=None):
            return value.digest

    return Tasks


def holders(wire):
    """Return how many blobs each holder holds, with all messages of a task as one holder."""
    blobs = wire.hook.store.blobs
    return Counter(
        name.partition("+")[0] for info in blobs.scan() for name in blobs.holders(info.digest)
    )


def lives(wire):
    """Return the remaining lifetime of each blob in seconds."""
    return sorted(info.ttl for info in wire.hook.store.blobs.scan())


def held_for(wire, name):
    """Return for how many seconds *name* still holds a blob."""
    blobs = wire.hook.store.blobs
    return max(
        left
        for info in blobs.scan()
        for holder, left in blobs.holders(info.digest).items()
        if holder.partition("+")[0] == name
    )


def near(seconds):
    return pytest.approx(seconds, abs=90)


# -- messages


def test_a_message_holds_what_it_refers_to(wire, tasks):
    """A message holds its values for the retention from publishing on, under its task's id."""
    result = tasks.size.delay(BIG)
    assert holders(wire) == {f"task:{result.id}": 1}
    assert lives(wire) == [near(10 * HOUR)]


def test_a_finished_task_releases_its_values(wire, tasks):
    """After a task has succeeded or failed, its values live for the grace period and no longer."""
    for task in (tasks.size, tasks.fails):
        task.delay([*BIG, task.name])
    wire.work()
    assert holders(wire) == {}
    assert lives(wire) == [near(HOUR), near(HOUR)]


def test_another_message_keeps_a_shared_value(wire, tasks):
    """A value in two messages lives until the second task is done."""
    tasks.size.delay(BIG)
    other = tasks.size.apply_async((BIG,), queue="elsewhere")
    wire.work()
    assert holders(wire) == {f"task:{other.id}": 1}
    assert lives(wire) == [near(10 * HOUR)]


def test_chunks_are_held_and_released(wire, tasks):
    """Every chunk of a large value is held, and is released without another read."""
    result = tasks.size.delay(np.arange(2_000_000))
    assert holders(wire) == {f"task:{result.id}": 5}
    wire.work()
    assert holders(wire) == {}
    assert lives(wire) == [near(HOUR)] * 5
    assert wire.calls.count("release") == 1
    assert wire.calls.count("get") == 2  # its root, and its chunks


def test_an_unread_reference_is_released(wire, tasks):
    """A task that never read its large value releases every blob of it."""
    tasks.looks.delay(np.arange(2_000_000))
    wire.work()
    assert holders(wire) == {}
    assert lives(wire) == [near(HOUR)] * 5


@pytest.mark.parametrize("how", ("ignore", "reject"))
def test_rejected_messages_keep_their_values(wire, tasks, how):
    """A rejected message keeps its holds, as it may be in a dead letter queue; an ignored one
    releases them.
    """
    result = tasks.ends.delay(BIG, how)
    wire.work()
    expected = {f"task:{result.id}": 1} if how == "reject" else {}
    assert holders(wire) == expected


def test_a_failure_in_a_dead_letter_queue_keeps_its_values(wire, tasks):
    """A task that isn't acknowledged when it fails keeps its message's holds."""
    result = tasks.late.delay(BIG)
    wire.work()
    assert holders(wire) == {f"task:{result.id}": 1}


def test_a_retry_holds_for_itself(wire, tasks):
    """Each retry's message has its own hold, and nothing is held after the last one."""
    result = tasks.again.delay(BIG)
    seen = []
    publish = wire.app.amqp.__dict__["create_task_message"]

    def watched(task_id, *args, **options):
        message = publish(task_id, *args, **options)
        seen.append(dict(holders(wire)))
        return message

    wire.app.amqp.__dict__["create_task_message"] = watched
    assert wire.get(result) == 2000
    assert seen == [{f"task:{result.id}": 2}, {f"task:{result.id}": 2}]
    assert holders(wire) == {}
    assert lives(wire) == [near(HOUR)]


def test_a_second_delivery_leaves_the_retry_its_value(wire, tasks):
    """A second delivery of a message doesn't release what the first delivery's retry needs."""
    result = tasks.again.delay(BIG)
    with wire.app.connection_for_read() as connection:
        queue = wire.app.amqp.queues[wire.app.conf.task_default_queue](connection.default_channel)
        message = queue.get()
    for retries in (1, 2):
        wire.execute(message)
        assert holders(wire) == {f"task:{result.id}": retries}
    wire.work()
    assert holders(wire) == {}


def test_a_replacement_keeps_what_it_needs(wire, tasks):
    """A task's replacement, which has the same id, keeps the value and releases it."""
    result = tasks.replaced.delay(BIG)
    assert wire.get(result) == 2000
    assert holders(wire) == {}
    assert lives(wire) == [near(HOUR)]


# -- what a worker's main process releases


@pytest.fixture
def received(wire, tasks, monkeypatch):
    """Return a function that calls a task and passes its message to a worker, and the released
    holders.
    """
    released = []
    monkeypatch.setattr(
        wire.hook._runtime.part(Releaser), "submit", lambda _, name, __: released.append(name)
    )
    wire.run(tasks.size, [])  # the first task that a worker registers guards its requests

    def received(task, *args, **options):
        result = task.apply_async(args or (BIG,), **options)
        message = wire.take()
        message.accept = prepare_accept_content(wire.app.conf.accept_content)
        request = Request(
            message, app=wire.app, task=task, on_ack=lambda *_: None, on_reject=lambda *_: None
        )
        request.delivery_info["exchange"] = ""
        return result, request

    return received, released


def raised(exc):
    try:
        raise exc
    except type(exc):
        return ExceptionInfo()


def test_a_worker_that_shuts_down_finishes_its_releases(wire, monkeypatch):
    """When a worker stops, its main process finishes pending releases before it exits."""
    stopping, released = threading.Event(), []

    def release_once_stopping(_runtime, _refs, name):
        assert stopping.wait(10)
        released.append(name)

    def stop(**_signal):
        stopping.set()

    monkeypatch.setattr("offload.hooks.release.release", release_once_stopping)
    signals.worker_shutdown.connect(stop)
    releaser = Releaser(wire.hook._runtime)
    names = [f"task:{number}" for number in range(1000)]
    for name in names:
        releaser.submit([], name, {"exchange": ""})
    assert released == []
    signals.worker_shutdown.send(sender=None)
    assert released == names


@pytest.mark.parametrize(
    ("exc", "given_up"), ((WorkerLostError("killed"), True), (Reject("no"), False))
)
def test_the_main_process_releases_only_what_is_finished(received, tasks, exc, given_up):
    """The main process releases holds of a killed task, but not of a rejected message, which may be
    in a dead letter queue even if the worker counts it as failed.
    """
    receive, released = received
    result, request = receive(tasks.acked)
    request.on_failure(raised(exc))
    assert [name.partition("+")[0] for name in released] == [f"task:{result.id}"] * given_up


@pytest.mark.parametrize("serializer", ("json", "pickle"))
def test_a_revoked_message_is_released(received, tasks, serializer):
    """A task that was revoked before it ran releases its message's holds, also those of its
    callbacks.
    """
    receive, released = received
    link = tasks.size.si(BIG)
    result, request = receive(tasks.size, [1], link=link, serializer=serializer)
    revoked.add(result.id)
    assert request.revoked()
    assert [name.partition("+")[0] for name in released] == [f"task:{result.id}"]


def test_backend_methods_keep_their_signatures(wire):
    """Methods of the backend accept the request by position and by name, as in Celery."""
    for request in (None, Context(id="x")):
        wire.app.backend.mark_as_failure("x", RuntimeError("as it is meant to"), None, request)
        wire.app.backend.mark_as_revoked("x", "reason", request, True)
    assert wire.app.AsyncResult("x").state == states.REVOKED


# -- hold durations


@pytest.mark.parametrize(
    ("options", "seconds"),
    (
        ({}, 10 * HOUR),
        ({"countdown": 100 * HOUR}, 110 * HOUR),
        ({"eta": lambda: datetime.now(timezone.utc) + timedelta(hours=20)}, 30 * HOUR),
        pytest.param(
            {"eta": f"{NEXT.year}-02"},
            lambda: (NEXT - datetime.now()).total_seconds() + 22 * HOUR,
            marks=pytest.mark.skipif(not reads_months(), reason="this Celery reads no months"),
        ),
        ({"eta": "soon"}, 10 * HOUR),
        ({"expires": 60}, 60 + HOUR),
        ({"expires": 50 * HOUR}, 51 * HOUR),
        ({"expires": 50 * HOUR, "countdown": 20 * HOUR}, 51 * HOUR),
        ({"offload": {"retention": 2 * HOUR}}, 2 * HOUR),
    ),
)
def test_a_message_holds_as_long_as_it_may_wait(wire, tasks, options, seconds):
    """countdown and eta extend the hold beyond the retention; expires replaces it."""
    given = {key: value() if callable(value) else value for key, value in options.items()}
    result = tasks.size.apply_async((BIG,), **given)
    expected = seconds() if callable(seconds) else seconds
    assert held_for(wire, f"task:{result.id}") == near(expected)


def test_the_grace_covers_a_second_delivery():
    """Released values also live for the broker's visibility timeout."""
    wire = make_wire(grace=HOUR, conf={"broker_transport_options": {"visibility_timeout": 7200}})
    assert wire.hook._runtime.grace == 3 * HOUR
    assert redelivery_time(make_wire().app.conf) == 0
    for url, seconds in (("redis://x", 3600), ("sqs://", 1800), ("amqp://x", 0)):
        conf = make_wire(conf={"broker_url": url}, watch=False).app.conf
        assert redelivery_time(conf) == seconds


@pytest.mark.parametrize("exchange", ("direct", "topic", "fanout", "unknown", None))
def test_a_message_that_others_may_have_is_not_released(wire, tasks, exchange):
    """Unless a message came through the default exchange, or the broker reports a single bound
    queue, it may have copies, so the first finished task releases nothing.
    """
    wire.app.amqp.queues = Queues(
        Queue(kind, Exchange(kind, type=kind), routing_key="key")
        for kind in ("direct", "topic", "fanout")
    )
    given = {"exchange": exchange, "routing_key": "key"}
    assert not is_done(wire.app, tasks.size, states.SUCCESS, given)
    assert not is_done(wire.app, tasks.size, states.SUCCESS, None)
    assert is_done(wire.app, tasks.size, states.SUCCESS, {"exchange": "", "routing_key": "key"})


@pytest.mark.server
@pytest.mark.parametrize("bound_by", ("nobody", "another key", "this app", "another service"))
def test_a_queue_that_another_service_bound_keeps_its_copies(valkey, bound_by):
    """A message through a named direct exchange is released only if the broker knows no second
    queue with its key, whoever bound it.
    """
    exchange = Exchange(f"orders {bound_by}", type="direct")
    own = Queue(f"own {bound_by}", exchange, routing_key="new")
    key = "old" if bound_by == "another key" else "new"
    audit = Queue(f"audit {bound_by}", exchange, routing_key=key)
    queues = [own, audit] if bound_by == "this app" else [own]
    conf = {"task_queues": queues, "task_default_queue": own.name}
    wire = make_wire(broker=valkey.url, retention=10 * HOUR, grace=HOUR, conf=conf)
    with Connection(valkey.url) as connection:
        for queue in [own] if bound_by == "nobody" else [own, audit]:
            queue(connection.default_channel).declare()

    @wire.app.task(name="size", shared=False)
    def size(value):
        return len(value)

    result = size.apply_async((BIG,), exchange=exchange.name, routing_key="new")
    message = wire.take()
    wire.execute(message, message.delivery_info)
    copied = bound_by in ("this app", "another service")
    assert holders(wire) == ({f"task:{result.id}": 1} if copied else {})
    assert lives(wire) == [near(10 * HOUR if copied else 2 * HOUR)]


# -- canvas


def test_a_chain_is_held_by_its_message(wire, tasks):
    """What a chain's later tasks need is held by the message that carries them."""
    signature = chain(tasks.size.s(BIG), tasks.echo.si([*BIG, 1]), tasks.size.si([*BIG, 2]))
    result = signature.delay()
    assert holders(wire) == {f"task:{result.parent.parent.id}": 3}
    wire.execute(wire.take())
    assert holders(wire) == {f"task:{result.parent.id}": 2}
    assert wire.get(result) == 2001
    assert holders(wire) == {f"result:{result.parent.id}": 1}
    assert lives(wire) == [near(HOUR), near(HOUR), near(10 * HOUR)]


def test_a_callback_holds_under_its_task(wire, tasks):
    """The task that calls callbacks holds their values until it ends."""
    result = tasks.size.apply_async(
        ([1],), link=tasks.size.si(BIG), link_error=tasks.size.si([*BIG, 1])
    )
    assert holders(wire) == {f"task:{result.id}": 2}
    wire.work()
    assert holders(wire) == {}
    assert lives(wire) == [near(HOUR), near(HOUR)]


def test_under_pickle_callbacks_are_released(wire, tasks):
    """Values of callbacks are released, too, where paths don't lead into signatures."""
    for value in ([1], [*BIG, 1]):
        tasks.size.apply_async((value,), link=tasks.size.si(BIG), serializer="pickle")
    wire.work()
    assert holders(wire) == {}
    assert lives(wire) == [near(HOUR), near(HOUR)]


def test_a_chord_releases_everything(wire, tasks):
    """After a chord, only the values of its stored results are held."""
    header = group(tasks.echo.s([*BIG, n]) for n in range(3))
    chord(header)(tasks.echo.si([*BIG, "body"]))
    assert list(holders(wire).values()) == [2, 2, 2]  # each its own, and the body's
    wire.work()
    held = holders(wire)
    assert {name.partition(":")[0] for name in held} == {"result"}


def test_a_result_that_is_only_passed_on_is_released(wire, tasks):
    """A result that isn't stored is released with the task that it was passed to."""
    result = chain(tasks.silent.s([*BIG, 1]), tasks.size.s())
    result.delay()
    wire.work()
    assert holders(wire) == {}
    assert lives(wire) == [near(HOUR)]


# -- results, put


def test_a_result_is_held_until_it_expires(wire, tasks):
    """A stored result is held under its task's id for result_expires or the retention."""
    result = tasks.echo.apply_async((BIG,), offload={"retention": HOUR})
    wire.work()
    assert holders(wire) == {f"result:{result.id}": 1}
    assert lives(wire) == [near(5 * HOUR)]
    assert result.get() == BIG


def test_a_forgotten_result_is_released(wire, tasks):
    """forget() releases a result; for a small or missing result it does nothing."""
    large = tasks.echo.delay(BIG)
    small = tasks.size.delay(BIG)
    wire.work()
    for result in (large, small, wire.app.AsyncResult("never")):
        result.forget()
    assert holders(wire) == {}
    assert lives(wire) == [near(HOUR)]


def test_without_holds_forgetting_reads_nothing(tmp_path, monkeypatch):
    """On a store with expiry only, forget() makes no additional read."""
    wire = make_wire(store=f"file://{tmp_path}")
    backend = wire.app.backend
    asked = []
    monkeypatch.setattr(backend, "get_task_meta", lambda *args: asked.append(args))
    wire.app.AsyncResult("any").forget()
    assert not asked


def test_a_put_value_is_not_held_by_tasks(wire, tasks):
    """A put value lives for its retention; tasks that use it neither hold nor release it."""
    ref = wire.hook.put(BIG)
    wire.calls.clear()
    for _ in range(3):
        tasks.size.delay(ref)
    wire.work()
    assert set(wire.calls) == {"get"}
    assert holders(wire) == {"put": 1}
    assert lives(wire)[0] > 10 * HOUR


def test_a_short_put_is_held_by_the_message(wire, tasks):
    """A message holds a Ref whose value would expire before the message."""
    ref = wire.hook.put(BIG, retention=60)
    result = tasks.size.delay(ref)
    assert held_for(wire, f"task:{result.id}") == near(10 * HOUR)
    wire.work()
    assert list(holders(wire)) == ["put"]


def test_a_hold_checks_all_references(wire, tasks):
    """When a message needs a hold anyway, the publisher notices that the value of another reference
    is missing.
    """
    lost, short = wire.hook.put([*BIG, 1]), wire.hook.put([*BIG, 2], retention=60)
    wire.hook.store.blobs.delete([lost.digest])
    with pytest.raises(BlobMissing, match="task 'again', value") as caught:
        tasks.again.delay(lost, other=short)
    assert caught.value.digest == lost.digest


# -- faults


def test_a_failed_release_is_harmless(wire, tasks, monkeypatch):
    """A task succeeds while the store is unavailable; its values expire, and the failure is
    counted.
    """
    from offload.errors import StoreUnavailable

    def unavailable(*_args):
        raise StoreUnavailable("away")

    result = tasks.size.delay(BIG)
    monkeypatch.setattr(wire.hook.store.blobs, "release", unavailable)
    assert wire.get(result) == 2000
    assert wire.hook.counters.snapshot()["releases_failed"] == 1
    assert holders(wire) == {f"task:{result.id}": 1}


def test_a_time_limit_during_a_release_does_not_fail_the_task(wire, tasks, monkeypatch):
    """An exception during the release after a task isn't reported as its failure: the result is
    stored and the callbacks are called.
    """

    def late(*_args):
        raise SoftTimeLimitExceeded

    tasks.size.delay(BIG)
    monkeypatch.setattr(wire.hook.store.blobs, "release", late)
    failed, _, _ = wire.execute(wire.take())
    assert not failed
    assert wire.hook.counters.snapshot()["releases_failed"] == 1


def test_a_deduplicated_publish_is_one_round_trip(wire, tasks):
    """Publishing what is already stored takes one round trip with its holds; releasing it takes one
    more.
    """
    tasks.size.delay(np.arange(2_000_000))
    wire.calls.clear()
    tasks.size.delay(np.arange(2_000_000))
    assert wire.calls == ["hold"]


def test_the_steps_of_a_chain_are_held_at_once(wire, tasks):
    """A message holds any number of values that it carries on in one round trip."""
    chain(tasks.size.si([*BIG, n]) for n in range(9)).delay()
    wire.calls.clear()
    wire.execute(wire.take())
    assert wire.calls == ["get", "hold", "release"]


def test_a_missing_value_among_many_is_named(wire, tasks):
    """If one of a message's values is missing, the error names its argument."""
    one, other = (wire.hook.put([*BIG, n], retention=60) for n in (1, 2))
    wire.hook.store.blobs.delete([other.digest])
    with pytest.raises(BlobMissing, match="task 'again', other") as caught:
        tasks.again.delay(one, other=other)
    assert caught.value.digest == other.digest


# -- pins


def test_a_pin_keeps_a_value(wire, tasks):
    """A pinned value outlives its retention and is found by its name; unpinned, it expires."""
    hook = wire.hook
    hook.pin(hook.put(BIG, retention=60), "models/latest")
    assert holders(wire) == {"put": 1, "pin:models/latest": 1}
    assert lives(wire)[0] > 10 * 365 * 86400
    assert hook.pinned("models/latest").get() == BIG
    assert wire.run(tasks.size, hook.pinned("models/latest")) == 2000
    assert hook.unpin("models/latest")
    assert not hook.unpin("models/latest")
    assert hook.pinned("models/latest") is None
    assert holders(wire) == {"put": 1}
    assert lives(wire) == [near(HOUR)]


def test_a_pin_moves_to_another_value(wire):
    """Pinning another value under a name releases the former one, except chunks that both share."""
    hook = wire.hook
    first, second = np.zeros(1 << 20), np.zeros(1 << 20)
    first[-1], second[-1] = 1, 2
    hook.pin(hook.put(first), "model")
    hook.pin(hook.put(second), "model")
    pinned = [left for left in lives(wire) if left > 100 * HOUR]
    assert (len(lives(wire)), len(pinned)) == (5, 3)  # they share the first chunk
    np.testing.assert_array_equal(hook.pinned("model").get(), second)
    assert list(hook._runtime.pins.names()) == ["model"]


@pytest.fixture
def meanwhile(wire, monkeypatch):
    """Return a function that makes another process act right after the next change of a pointer."""
    pointers = wire.hook.store.pointers
    swap = pointers.swap

    def meanwhile(do):
        def once(*args):
            done = swap(*args)
            monkeypatch.setattr(pointers, "swap", swap)
            do()
            return done

        monkeypatch.setattr(pointers, "swap", once)

    return meanwhile


def test_concurrent_pins_of_a_name_keep_the_last(wire, meanwhile):
    """When two processes pin a name at once, the last pin stays and the other value is released."""
    hook = wire.hook
    first, second = (hook.put([*BIG, n], retention=60) for n in (1, 2))
    hook.pin(first, "model")
    meanwhile(lambda: hook.pin(first, "model"))
    hook.pin(second, "model")
    assert hook.pinned("model") == first
    assert holders(wire) == {"put": 2, "pin:model": 1}
    (kept,) = (info.digest for info in hook.store.blobs.scan() if info.ttl > 100 * HOUR)
    assert kept == first.digest


def test_a_pin_removed_at_once_leaves_nothing(wire, meanwhile):
    """If a pin is removed while it is being created, nothing remains."""
    hook = wire.hook
    ref = hook.put(BIG, retention=60)
    meanwhile(lambda: hook.unpin("model"))
    hook.pin(ref, "model")
    assert hook.pinned("model") is None
    assert holders(wire) == {"put": 1}


def test_a_late_unpin_keeps_a_later_pin(wire, meanwhile):
    """A value that is pinned again during an unpin stays pinned."""
    hook = wire.hook
    ref = hook.put(BIG, retention=60)
    hook.pin(ref, "model")
    meanwhile(lambda: hook.pin(ref, "model"))
    assert hook.unpin("model")
    assert hook.pinned("model") == ref
    assert holders(wire) == {"put": 1, "pin:model": 1}


def test_a_store_with_expiry_only_refuses_pins(tmp_path):
    """A store with expiry only refuses pins, because it couldn't remove them."""
    wire = make_wire(store=f"file://{tmp_path}")
    with pytest.raises(ConfigurationError, match="only by age"):
        wire.hook.pin(wire.hook.put(BIG), "model")
