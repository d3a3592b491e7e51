"""Prefetch: for waiting tasks, within limits, and without delaying anything."""

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
ROOM = 5 * MB  # for prefetched values: two of them


class Consumer:
    def __init__(self, pool):
        self.pool = pool


class Node:
    """An app over a store with a node cache, with the relevant part of a worker's main process."""

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

        # The key is known: further reads are of blobs.
        self.hook._runtime.content.open(self.hook.put("").wire)
        self.wire.calls.clear()

    def value(self, size=SIZE):
        self._seed += 1
        return chr(64 + self._seed) * size

    def publish(self, value=None, *more, task="length", **options):
        value = self.value() if value is None else value
        self.wire.app.tasks[task].apply_async((value, *more), **options)

    def receive(self, note=None):
        """Receive the next message as a worker does and reserve its task; return its request.
        *note* replaces the header about its references.
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
        """Return the cache file name of a request's first argument."""
        digest = self.hook._runtime.content.open(wire_text(request.args[0])).digest
        return digest.replace(":", "-")

    def counted(self, name):
        return self.hook.counters.snapshot()[f"prefetch_{name}"]

    def hang(self):
        """Make reads of blobs block; return an event for a started read and one that lets it
        continue.
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
        """Wait until the thread has done all possible work and is idle."""
        (ahead,) = self.hook._runtime.part(Prefetcher)._queues._made.values()

        def idle():
            with ahead._changed:
                return not ahead._received and ahead._changed._waiters

        wait_until(idle, "the thread is idle")


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
        if (ahead := node.hook._runtime.part(Prefetcher)._queues.take()) is not None:
            ahead._stop()


def logged(caplog):
    """Return what offload logged; kombu warns that ``memory://`` has no host name."""
    return [each for each in caplog.records if each.name.startswith("offload")]


def test_the_value_of_a_waiting_task_is_fetched(make):
    """While the pool is busy, a waiting task's value enters the node cache; the task's own read is
    a hit and makes no store call.
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


def test_a_task_that_starts_at_once_is_not_prefetched(make):
    """With a free child, nothing is prefetched."""
    node = make(busy=False)
    node.publish()
    node.receive()
    assert node.hook._runtime.part(Prefetcher)._queues.take() is None


def test_tasks_that_were_just_handed_over_count_as_running(make):
    """Of two tasks that arrive at once in a free pool of one, the second counts as waiting."""
    node = make(busy=False)
    node.publish("small")
    node.receive()
    node.waiting()
    wait_until(node.cached, "the value is cached")


def make_pool(kind):
    """Return a pool of one child that isn't started."""

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
    """Prefetch is on by default in prefork pools, on request in others, never in mode observe."""
    publisher = make(busy=False)
    pool = pool and make_pool(pool)
    node = make(prefetch=setting, mode=mode, pool=pool, store=publisher.hook.settings.store)
    node.wire.app.conf.task_default_queue = publisher.wire.app.conf.task_default_queue
    publisher.publish()
    node.receive()
    if fetched:
        wait_until(node.cached, "the value is cached")
    else:
        assert node.hook._runtime.part(Prefetcher)._queues.take() is None


def test_waiting_values_are_limited_in_bytes(make):
    """Values of waiting tasks fill at most their share of the cache; when a task starts, the next
    value is fetched.
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


def test_a_value_of_several_tasks_counts_once(make):
    """A value for which several tasks wait counts once."""
    node = make()
    for _ in range(5):
        node.waiting("v" * SIZE)
    node.waiting()
    wait_until(lambda: len(node.cached()) == 2, "both values are cached")
    node.settled()  # a file is there before it is counted
    assert node.counted("done") == 2


def test_room_is_kept_while_any_task_waits_for_its_value(make):
    """A value counts until the last task that waits for it has started."""
    node = make()
    first = node.waiting("v" * SIZE)
    node.waiting()
    third = node.waiting()
    last = node.waiting("v" * SIZE)
    wait_until(lambda: len(node.cached()) == 2, "two values are cached")
    node.settled()
    node.begin(first)
    node.waiting("small" * 1000)  # the thread checks at once
    node.settled()
    assert node.file(third) not in node.cached()
    node.begin(last)
    wait_until(lambda: node.file(third) in node.cached(), "the third value is cached")


def test_a_revoked_task_that_waits_for_room_is_skipped(make):
    """A task that is revoked while its value waits for room gives way to others."""
    node = make()
    waiting = [node.waiting() for _ in range(4)]
    wait_until(lambda: len(node.cached()) == 2, "two values are cached")
    state.revoked.add(waiting[2].id)
    node.begin(waiting[0])
    wait_until(lambda: node.file(waiting[3]) in node.cached(), "the last value is cached")
    assert node.file(waiting[2]) not in node.cached()


def test_a_value_that_is_too_large_does_not_block_others(make):
    """A value that exceeds the room is left to its task; later ones are fetched."""
    node = make()
    node.waiting(node.value(ROOM + MB))
    node.waiting()
    wait_until(node.cached, "the second value is cached")
    node.settled()
    assert (node.counted("done"), node.counted("dropped")) == (1, 1)


def test_waiting_values_are_limited_in_number(make, monkeypatch):
    """While the store hangs, tasks are received without delay, and prefetches over the limit are
    dropped.
    """
    monkeypatch.setattr(prefetch, "LIMIT", 3)
    node = make()
    reached, go_on = node.hang()
    node.waiting()
    assert reached.wait(30)
    for _ in range(5):
        node.waiting()
    assert node.counted("dropped") == 2
    go_on.set()
    wait_until(lambda: len(node.cached()) == 2, "values that fit are cached")


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
    """Values that are due much later, small, or only wanted as a Ref are not prefetched."""
    node = make()
    case(node)
    node.waiting("v" * SIZE)
    wait_until(node.cached, "the value after it is cached")
    node.settled()
    assert len(node.cached()) == 1
    assert (node.counted("done"), node.counted("dropped")) == (1, 0)


def test_a_task_that_is_due_soon_is_prefetched(make):
    """A task with a short countdown is prefetched even if the pool isn't busy."""
    node = make(busy=False)
    node.waiting(eta=datetime.now(timezone.utc) + timedelta(seconds=prefetch.SOON / 2))
    wait_until(node.cached, "the value is cached")


def test_other_arguments_of_a_task_that_wants_a_ref(make):
    """Other parameters next to one annotated Ref are prefetched."""
    node = make()
    node.waiting(node.value(), node.value(), task="lazy")
    wait_until(node.cached, "the value is cached")
    node.settled()
    assert len(node.cached()) == 1


@pytest.mark.parametrize("what", ("begun", "revoked", "expired", "rejected", "gone", "stopping"))
def test_a_useless_prefetch_is_skipped(make, monkeypatch, what):
    """A task that starts or is dropped before its prefetch costs no read."""
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
def test_a_failed_prefetch_is_left_to_the_task(make, error, caplog):
    """A failed prefetch is logged at level debug only, and the next value is fetched."""
    node = make()
    get = node.hook.store.blobs.get

    def fail(*_args):
        object.__setattr__(node.hook.store.blobs, "get", get)
        raise error

    object.__setattr__(node.hook.store.blobs, "get", fail)
    node.waiting()
    wait_until(lambda: node.counted("dropped") == 1, "the prefetch is counted")
    node.waiting()
    wait_until(node.cached, "the next value is cached")
    node.settled()
    assert (node.counted("done"), node.counted("dropped")) == (1, 1)
    assert not logged(caplog)


def test_an_unavailable_store_is_not_asked_for_each_task(make):
    """One failed prefetch for an unavailable store drops all waiting ones."""
    node = make()
    reached, go_on = node.hang()
    hang = node.hook.store.blobs.get
    node.waiting()
    assert reached.wait(30)
    asked = []

    def unavailable(*args):
        if not go_on.is_set():  # the publisher's own
            return hang(*args)
        asked.append(args)
        raise StoreUnavailable("away")

    object.__setattr__(node.hook.store.blobs, "get", unavailable)
    for _ in range(3):
        node.waiting()
    go_on.set()
    wait_until(lambda: node.counted("dropped") == 4, "all are counted")
    assert len(asked) == 2  # for a chunk of the first, and for the second


@pytest.mark.parametrize(
    "note", (5, {"refs": 5}, {"v": 1, "refs": [["args", 7]]}, {"v": 99, "refs": [["args", 0]]})
)
def test_a_broken_header_is_left_to_the_task(make, note, caplog):
    """A header that can't be parsed neither stops the worker nor logs an error."""
    node = make()
    node.publish()
    node.receive(note=note)
    if node.hook._runtime.part(Prefetcher)._queues._made:
        node.settled()
    assert node.cached() == set()
    node.waiting()
    wait_until(node.cached, "a good one is cached")
    assert not logged(caplog)


def test_apps_without_offload_are_left_alone(make):
    """The receiver, of which a process has one, ignores apps without offload."""
    make()
    assert signals.task_received.send(sender=None, request=SimpleNamespace(app=object()))
    receivers = [key for key, _ in signals.task_received.receivers]
    assert len(receivers) == len(set(receivers))


def test_a_worker_that_exits_leaves_no_partial_file(make):
    """A process that exits finishes the value that it is fetching and starts no other."""
    node = make()
    reached, go_on = node.hang()
    node.waiting()
    assert reached.wait(30)
    node.waiting()
    ahead = node.hook._runtime.part(Prefetcher)._queues.get()
    assert list(node.folder.glob("*.part"))
    ending = threading.Thread(target=ahead._stop)
    ending.start()
    wait_until(lambda: ahead._is_stopped, "the process exits")
    go_on.set()
    ending.join(30)
    assert not ahead._thread.is_alive()
    assert len(node.cached()) == 1
    assert not list(node.folder.glob("*.part"))


def test_a_forked_child_starts_with_an_empty_state(make):
    """A child that is forked while the thread works has no thread, waits for none, and exits."""
    node = make()
    other = node.hook.put(node.value())
    reached, go_on = node.hang()
    node.waiting()
    assert reached.wait(30)
    ahead = node.hook._runtime.part(Prefetcher)._queues.get()
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
