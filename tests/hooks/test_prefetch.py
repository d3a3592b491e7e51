"""Fetching ahead: for tasks that wait, within bounds, and never in the way."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from celery import signals
from celery.concurrency.prefork import TaskPool as Prefork
from celery.concurrency.solo import TaskPool as Solo
from celery.worker import state
from celery.worker.request import Request

from offload import IntegrityError, Ref, StoreUnavailable
from offload.content.cache import NodeCache
from offload.hooks import prefetch, runtime
from offload.hooks.message import own_name
from offload.hooks.prefetch import Prefetcher
from offload.ref import wire_text
from tests.support.processes import wait_until
from tests.support.wire import make_wire

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="flock, /proc and tmpfs")

MB = 1024**2
SIZE = 2 * MB
ROOM = 5 * MB  # for what is fetched ahead: two values


class Consumer:
    def __init__(self, pool):
        self.pool = pool


class Node:
    """An app over a store with a node cache, and a worker's main process as far as it matters."""

    def __init__(self, folder, pool, **settings):
        self.folder = folder
        self.pool = pool
        self.wire = make_wire(prefetch=settings.pop("prefetch", "on"), **settings)
        self.hook = self.wire.hook
        self.requests = []
        self._seed = 0

        @self.wire.app.task(name="length", shared=False)
        def length(value, other=None):
            return len(value)

        @self.wire.app.task(name="lazy", shared=False)
        def lazy(value: Ref, other=None):
            return other and len(other)

        # The key is known: what is asked from here on are blobs.
        self.hook.content.open(self.hook.put("").wire)
        self.wire.calls.clear()

    def value(self, size=SIZE):
        self._seed += 1
        return chr(64 + self._seed) * size

    def publish(self, value=None, *more, task="length", **options):
        value = self.value() if value is None else value
        self.wire.app.tasks[task].apply_async((value, *more), **options)

    def receive(self, note=None):
        """Take the next message as a worker does, and reserve its task; return its request.

        *note* replaces what it says of its references.
        """
        with self.wire.app.connection_for_read() as connection:
            queue = self.wire.app.amqp.queues[self.wire.app.conf.task_default_queue]
            message = queue(connection.default_channel).get(accept=["json"])
            message.ack()
            task = self.wire.app.tasks[own_name(message.headers) or message.headers["task"]]
            request = Request(message, app=self.wire.app, task=task)
        if note is not None:
            request.__dict__["_payload"] = (*request._payload[:2], {"offload": note})
        signals.task_received.send(sender=Consumer(self.pool), request=request)
        state.task_reserved(request)
        self.requests.append(request)
        return request

    def waiting(self, value=None, *more, **options):
        """Publish a task and receive it while the pool's only child is busy."""
        self.publish(value, *more, **options)
        return self.receive()

    def begin(self, request):
        request.on_accepted(os.getpid(), time.monotonic())

    def cached(self):
        return {path.name for path in self.folder.glob("b3-*") if path.suffix != ".part"}

    def file(self, request):
        """The name of the file of a request's first argument."""
        digest = self.hook.content.open(wire_text(request.args[0])).digest
        return digest.replace(":", "-")

    def counted(self, name):
        return self.hook.counters.snapshot()[f"prefetch_{name}"]

    def hang(self):
        """Have the store's blobs answer when told; return what says that one is asked for, and
        what is to be set.
        """
        reached, go_on = threading.Event(), threading.Event()
        get = self.hook.store.blobs.get

        def hang(*args):
            reached.set()
            assert go_on.wait(30)
            return get(*args)

        object.__setattr__(self.hook.store.blobs, "get", hang)
        return reached, go_on

    def settled(self):
        """Return when the thread has done what it can now, and waits."""
        (ahead,) = self.hook.part(Prefetcher)._queues._made.values()

        def idle():
            with ahead._changed:
                return not ahead._received and ahead._changed._waiters

        wait_until(idle, "the thread has done what it can")


@pytest.fixture(autouse=True)
def nothing_running():
    state.reset_state()
    yield
    state.reset_state()


@pytest.fixture
def make(tmp_path, monkeypatch):
    folder = tmp_path / "cache"

    def cached(_url, settings, counters):
        from offload.content.cache.folder import Folder

        return NodeCache(Folder(folder, 4 * ROOM), counters)

    monkeypatch.setattr(runtime, "open_cache", cached)
    nodes = []

    def make(*, busy=True, pool=None, **settings):
        node = Node(folder, pool or SimpleNamespace(num_processes=1), **settings)
        nodes.append(node)
        if busy:
            node.publish("small")
            node.begin(node.receive())
        return node

    yield make
    for node in nodes:
        if (ahead := node.hook.part(Prefetcher)._queues.take()) is not None:
            ahead._stop()


def test_the_value_of_a_waiting_task_is_fetched(make):
    """While the pool is busy a waiting task's value enters the node cache; the task's own
    fetch is then a hit and asks the store nothing.
    """
    node = make()
    node.waiting("v" * SIZE)
    wait_until(node.cached, "the value is cached")
    node.settled()
    assert (node.counted("done"), node.counted("dropped")) == (1, 0)
    assert node.counted("bytes") >= SIZE
    node.wire.calls.clear()
    ref = Ref.unbound(wire_text(node.requests[-1].args[0]))
    assert node.hook.get(ref) == "v" * SIZE
    assert node.wire.calls == []
    counts = node.hook.counters.snapshot()
    assert (counts["cache_hits"], counts["cache_misses"], counts["values_fetched"]) == (1, 0, 0)


def test_who_is_begun_at_once_fetches_itself(make):
    """With a free child nothing is fetched ahead."""
    node = make(busy=False)
    node.publish()
    node.receive()
    assert node.hook.part(Prefetcher)._queues.take() is None


def test_tasks_that_were_just_handed_over_count_as_running(make):
    """Of two tasks that arrive at once in a free pool of one, the second waits."""
    node = make(busy=False)
    node.publish("small")
    node.receive()
    node.waiting()
    wait_until(node.cached, "the value is cached")


def a_pool(kind):
    """A pool of one child that is not started."""

    class Pool(kind):
        num_processes = 1

    return Pool(1)


@pytest.mark.parametrize(
    ("setting", "mode", "pool", "fetched"),
    (
        ("auto", "on", Prefork, True),
        ("auto", "off", Prefork, True),
        ("auto", "on", Solo, False),
        ("auto", "on", None, False),
        ("on", "on", Solo, True),
        ("off", "on", Prefork, False),
        ("auto", "observe", Prefork, False),
    ),
)
def test_where_it_is_on(make, setting, mode, pool, fetched):
    """By itself it is on in prefork pools, else where it was asked for; never in mode observe."""
    publisher = make(busy=False)
    pool = pool and a_pool(pool)
    node = make(prefetch=setting, mode=mode, pool=pool, store=publisher.hook.settings.store)
    node.wire.app.conf.task_default_queue = publisher.wire.app.conf.task_default_queue
    publisher.publish()
    node.receive()
    if fetched:
        wait_until(node.cached, "the value is cached")
    else:
        assert node.hook.part(Prefetcher)._queues.take() is None


def test_what_waits_is_bounded_in_bytes(make):
    """Values of waiting tasks take their part of the cache and no more; when one is begun
    the next is fetched.
    """
    node = make()
    waiting = [node.waiting() for _ in range(4)]
    wait_until(lambda: len(node.cached()) == 2, "two values are cached")
    node.settled()
    assert len(node.cached()) == 2
    assert node.counted("dropped") == 0
    node.begin(waiting[0])
    wait_until(lambda: len(node.cached()) == 3, "the third value is cached")
    node.settled()
    assert len(node.cached()) == 3


def test_a_value_of_many_tasks_takes_its_room_once(make):
    """Tasks that wait for one value leave room for another."""
    node = make()
    for _ in range(5):
        node.waiting("v" * SIZE)
    node.waiting()
    wait_until(lambda: len(node.cached()) == 2, "both values are cached")
    assert node.counted("done") == 2


def test_room_is_kept_while_any_task_waits_for_its_value(make):
    """A value counts until the last of its tasks is begun."""
    node = make()
    first = node.waiting("v" * SIZE)
    node.waiting()
    third = node.waiting()
    last = node.waiting("v" * SIZE)
    wait_until(lambda: len(node.cached()) == 2, "two values are cached")
    node.settled()
    node.begin(first)
    node.waiting("small" * 1000)  # the thread looks at once
    node.settled()
    assert node.file(third) not in node.cached()
    node.begin(last)
    wait_until(lambda: node.file(third) in node.cached(), "the third value is cached")


def test_what_waits_for_room_in_vain_is_skipped(make):
    """A task that is revoked while there was no room for its value leaves its turn to others."""
    node = make()
    waiting = [node.waiting() for _ in range(4)]
    wait_until(lambda: len(node.cached()) == 2, "two values are cached")
    state.revoked.add(waiting[2].id)
    node.begin(waiting[0])
    wait_until(lambda: node.file(waiting[3]) in node.cached(), "the last value is cached")
    assert node.file(waiting[2]) not in node.cached()


def test_what_is_too_large_does_not_hold_up_others(make):
    """A value over the room is left to its task; those after it are fetched."""
    node = make()
    node.waiting(node.value(ROOM + MB))
    node.waiting()
    wait_until(node.cached, "the second value is cached")
    node.settled()
    assert (node.counted("done"), node.counted("dropped")) == (1, 1)


def test_what_waits_is_bounded_in_number(make, monkeypatch):
    """While the store hangs, tasks are received without delay, and what is too much is dropped."""
    monkeypatch.setattr(prefetch, "LIMIT", 3)
    node = make()
    reached, go_on = node.hang()
    node.waiting()
    assert reached.wait(30)
    for _ in range(5):
        node.waiting()
    assert node.counted("dropped") == 2
    go_on.set()
    wait_until(lambda: len(node.cached()) == 2, "what there is room for is cached")


def far(node):
    node.waiting(eta=datetime.now(timezone.utc) + timedelta(seconds=prefetch.SOON + 60))


def small(node):
    node.waiting(node.value(MB // 2))


def lazy(node):
    node.waiting(task="lazy")


def plain(node):
    node.waiting("small")


@pytest.mark.parametrize("case", (far, small, lazy, plain))
def test_what_is_not_fetched(make, case):
    """What is due much later, small, or asked for as a Ref alone is not fetched."""
    node = make()
    case(node)
    node.waiting("v" * SIZE)
    wait_until(node.cached, "the value after it is cached")
    node.settled()
    assert len(node.cached()) == 1
    assert (node.counted("done"), node.counted("dropped")) == (1, 0)


def test_what_is_due_soon_is_fetched(make):
    """A task that waits for its time a little needs no busy pool."""
    node = make(busy=False)
    node.waiting(eta=datetime.now(timezone.utc) + timedelta(seconds=prefetch.SOON / 2))
    wait_until(node.cached, "the value is cached")


def test_other_arguments_of_a_task_that_wants_a_ref(make):
    """Beside a parameter annotated Ref, the others are fetched."""
    node = make()
    node.waiting(node.value(), node.value(), task="lazy")
    wait_until(node.cached, "the value is cached")
    node.settled()
    assert len(node.cached()) == 1


@pytest.mark.parametrize("what", ("begun", "revoked", "expired", "rejected", "gone", "stopping"))
def test_what_became_useless_is_skipped(make, monkeypatch, what):
    """A task that is begun or given up before its turn comes costs no fetch."""
    node = make()
    reached, go_on = node.hang()
    node.waiting()
    assert reached.wait(30)
    request = node.waiting(expires=300 if what == "expired" else None)
    if what == "begun":
        node.begin(request)
    elif what == "revoked":
        state.revoked.add(request.id)
    elif what == "expired":
        request.expires = datetime.now(timezone.utc) - timedelta(seconds=1)
    elif what == "rejected":
        request.acknowledged = True
    elif what == "gone":
        state.task_ready(request)
        node.requests.remove(request)
    else:
        monkeypatch.setattr(state, "should_stop", 0)
    del request
    go_on.set()
    wait_until(node.cached, "the first value is cached")
    node.settled()
    assert len(node.cached()) == 1
    assert (node.counted("done"), node.counted("dropped")) == (1, 0)


@pytest.mark.parametrize(
    "error",
    (StoreUnavailable("away"), IntegrityError("altered"), OSError("no room"), RuntimeError("?")),
)
def test_what_fails_is_left_to_the_task(make, error, caplog):
    """Whatever is raised, nothing is logged above debug, and the next value is fetched."""
    node = make()
    get = node.hook.store.blobs.get

    def fail(*_args):
        object.__setattr__(node.hook.store.blobs, "get", get)
        raise error

    object.__setattr__(node.hook.store.blobs, "get", fail)
    node.waiting()
    wait_until(lambda: node.counted("dropped") == 1, "it is counted")
    node.waiting()
    wait_until(node.cached, "the next value is cached")
    node.settled()
    assert (node.counted("done"), node.counted("dropped")) == (1, 1)
    assert not caplog.records


def test_while_the_store_is_away_it_is_not_asked_for_each_task(make):
    """One failure for want of the store drops all that wait."""
    node = make()
    reached, go_on = node.hang()
    hang = node.hook.store.blobs.get
    node.waiting()
    assert reached.wait(30)
    asked = []

    def away(*args):
        if not go_on.is_set():  # the publisher's own
            return hang(*args)
        asked.append(args)
        raise StoreUnavailable("away")

    object.__setattr__(node.hook.store.blobs, "get", away)
    for _ in range(3):
        node.waiting()
    go_on.set()
    wait_until(lambda: node.counted("dropped") == 4, "all are counted")
    assert len(asked) == 2  # for a chunk of the first, and for the second


@pytest.mark.parametrize(
    "note", (5, {"refs": 5}, {"v": 1, "refs": [["args", 7]]}, {"v": 99, "refs": [["args", 0]]})
)
def test_a_broken_note_is_left_to_the_task(make, note, caplog):
    """What cannot be read here is no worker's end, and no error in its log."""
    node = make()
    node.publish()
    node.receive(note=note)
    if node.hook.part(Prefetcher)._queues._made:
        node.settled()
    assert node.cached() == set()
    node.waiting()
    wait_until(node.cached, "a good one is cached")
    assert not caplog.records


def test_apps_without_offload_are_left_alone(make):
    """The receiver, which is one for the process, does nothing for other apps."""
    make()
    assert signals.task_received.send(sender=None, request=SimpleNamespace(app=object()))
    receivers = [key for key, _ in signals.task_received.receivers]
    assert len(receivers) == len(set(receivers))


def test_the_end_of_a_worker_leaves_no_half_a_file(make):
    """A process that ends finishes the value that it is fetching, and begins no other."""
    node = make()
    reached, go_on = node.hang()
    node.waiting()
    assert reached.wait(30)
    node.waiting()
    ahead = node.hook.part(Prefetcher)._queues.get()
    assert list(node.folder.glob("*.part"))
    ending = threading.Thread(target=ahead._stop)
    ending.start()
    wait_until(lambda: ahead._is_stopped, "the process ends")
    go_on.set()
    ending.join(30)
    assert not ahead._thread.is_alive()
    assert len(node.cached()) == 1
    assert not list(node.folder.glob("*.part"))


def test_a_forked_child_begins_with_nothing(make):
    """A child forked while the thread is at work has no thread, waits for none, and ends."""
    node = make()
    other = node.hook.put(node.value())
    reached, go_on = node.hang()
    node.waiting()
    assert reached.wait(30)
    ahead = node.hook.part(Prefetcher)._queues.get()
    held, forked = threading.Event(), threading.Event()

    def hold():
        with ahead._changed:
            held.set()
            forked.wait(30)

    holding = threading.Thread(target=hold)
    holding.start()
    assert held.wait(30)
    child = os.fork()
    if not child:  # pragma: no cover (another process)
        good = False
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            go_on.set()
            ahead._stop()
            good = len(node.hook.get(other)) == SIZE
            node.waiting()
        finally:
            os._exit(not good)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    forked.set()
    holding.join()
    go_on.set()
    wait_until(node.cached, "the value is cached")
