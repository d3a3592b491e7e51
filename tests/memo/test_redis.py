"""Single flight on real Redis servers: one round trip to claim, one to settle."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import chain, signals

import offload
from offload.content.manifest import small_root
from offload.errors import StoreUnavailable
from offload.hooks import execute
from offload.hooks import memo as memo_hooks
from offload.hooks.release import Releaser
from offload.memo import flight, results
from offload.memo.flight import Busy, Computation, Flights
from offload.memo.records import Record, Within, write_record
from offload.memo.results import Results
from offload.metrics.counters import Counters
from offload.stores import open_store
from offload.stores.redis import client as store_client
from offload.stores.redis.client import script
from tests.hooks.test_memo import Memo, small
from tests.support.content import make_content
from tests.support.processes import wait_until
from tests.support.round_trips import Wire
from tests.support.servers import redis_client
from tests.support.wire import make_wire

pytestmark = [pytest.mark.server, pytest.mark.timeout(60)]

NAME = "memo/task/app/key"
LEASE = 30.0
ROWS = list(range(5000))
PACKAGE = str(Path(offload.__file__).parent)


@pytest.fixture
def raw(redis):
    with redis_client(redis, db=11) as client:
        client.flushdb()
        yield client


@pytest.fixture
def store(redis, raw):
    store = open_store(f"redis://{redis.host}:{redis.port}/11")
    yield store
    store.close()


@pytest.fixture
def trips(monkeypatch, store):
    """Return a function that returns how many round trips a call makes."""
    wire = Wire(monkeypatch)

    def trips(function, *args):
        before = wire.trips
        return function(*args), wire.trips - before

    return trips


def same(number, more=0):
    return number


def twice(_number):
    return ROWS * 2


def valid(_name, value):
    return value != b"invalid"


def test_a_claim_and_its_settlement_are_one_round_trip_each(store, trips):
    """To compute takes one round trip before and one after; a hit, or to find that somebody else
    computes, takes one.
    """
    one, two = Flights(store, valid), Flights(store, valid)
    for name in ("memo/warm/app/key", NAME):  # the first makes the server know the scripts
        mine, claimed = trips(one.claim, name, LEASE)
        busy, asked = trips(two.claim, name, LEASE)
        finish, settled = trips(one.settle, mine, b"record", 60)
        done, finished = trips(finish)
        hit, read = trips(two.claim, name, LEASE)
        assert isinstance(mine, Computation)
        assert isinstance(busy, Busy)
        assert LEASE - 5 < busy.left <= LEASE
        assert (done, hit) == (True, b"record")
    assert (claimed, asked, settled, finished, read) == (1, 1, 1, 0, 1)


def test_a_claim_carries_what_waits_for_a_request(store, raw, trips, monkeypatch):
    """Scripts that wait for the next request, such as releases, go along with a claim; if it fails,
    with the next one.
    """
    flights, client = Flights(store, valid), store.client
    flights.abandon(flights.claim(NAME, LEASE))  # the server knows the script
    assert store.pointers.swap("known", None, b"script")

    def wait(key):
        assert client.defer_script(script("swap"), (key,), ("0", b"", "1", b"written"))

    wait("one")
    mine, asked = trips(flights.claim, NAME, LEASE)
    assert (asked, raw.get("one")) == (1, b"written")
    wait("two")
    with monkeypatch.context() as patch, pytest.raises(StoreUnavailable):
        patch.setattr(store_client, "send", refuse)
        flights.settle(mine, b"record", 60)
    assert raw.get("two") is None
    assert flights.settle(mine, b"record", 60)() is True
    assert raw.get("two") == b"written"


def test_one_connection_is_enough(redis, raw):
    """Where the connections of a process are limited, a memo task takes none while it publishes."""
    wire = make_wire(store=f"redis://{redis.host}:{redis.port}/11?max_connections=1")
    memo = Memo(wire)

    @wire.app.task(shared=False)
    def follow(rows, more):
        return len(rows) + len(more)

    result = chain(memo.task(twice).s(1), follow.s(ROWS))()
    wire.work()
    assert result.get(timeout=30) == 3 * len(ROWS)
    assert wire.hook.counters.snapshot()["memo_misses"] == 1


def scalar(number):
    """Return a number as a record contains it."""
    return Within(small_root("json", b"", b"%d" % number), "json", "int", len(str(number)))


def refuse(*_given):
    raise ConnectionError("refused")


def test_a_record_expires_by_itself(store, raw):
    """The server deletes a record when its time has passed; its lease is deleted at once."""
    flights = Flights(store, valid)
    assert flights.settle(flights.claim(NAME, LEASE), b"record", 60)()
    assert 50_000 < raw.pttl(f"offload:pointer:{NAME}") <= 60_000
    assert not raw.exists(f"offload:lease:{NAME}")


@pytest.mark.parametrize("how", ("broken", "expired", "taken"))
def test_a_computation_without_its_lease_writes_nothing(store, raw, how):
    """A computation that lost its lease doesn't write, whoever has the lease now."""
    one, two = Flights(store, valid), Flights(store, valid)
    mine = one.claim(NAME, LEASE)
    if how == "expired":
        raw.hset(f"offload:lease:{NAME}", "until", 1)
    else:
        store.leases.release(NAME, mine.owner)
    theirs = two.claim(NAME, LEASE) if how == "taken" else None
    assert one.settle(mine, b"late", 60)() is False
    assert store.pointers.read(NAME) is None
    if theirs is not None:
        assert theirs.fence > mine.fence
        assert two.settle(theirs, b"record", 60)() is True
        assert store.pointers.read(NAME) == b"record"


def test_a_record_that_is_not_valid_is_replaced(store):
    """A record that doesn't count is computed anew, by one process, and replaced."""
    store.pointers.swap(NAME, None, b"invalid")
    one, two = Flights(store, valid), Flights(store, valid)
    mine = one.claim(NAME, LEASE)
    assert isinstance(mine, Computation)
    assert isinstance(two.claim(NAME, LEASE), Busy)
    store.pointers.swap(NAME, b"invalid", None)  # swept meanwhile
    assert one.settle(mine, b"record", 60)() is True
    assert two.claim(NAME, LEASE) == b"record"
    assert isinstance(two.claim(NAME, LEASE, b"record"), Computation)


def test_the_end_of_a_computation_wakes_who_waits(store):
    """Whoever waits in place claims again as soon as the computation has ended."""
    one, two = Flights(store, valid), Flights(store, valid)
    mine = one.claim(NAME, LEASE)
    busy = two.claim(NAME, LEASE)
    woken = threading.Event()

    def wait():
        two.wait(NAME, busy, 0)
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    one.settle(mine, b"record", 60)()
    thread.join(20)
    assert woken.is_set()


def test_a_computation_that_nobody_asked_for_wakes_nobody(store, raw):
    """The end of a computation leaves nothing for those who wait if there are none."""
    flights = Flights(store, valid)
    assert flights.settle(flights.claim(NAME, LEASE), b"record", 60)()
    assert raw.keys("*") == [f"offload:pointer:{NAME}".encode()]


def test_waiting_in_place_asks_rarely(store, monkeypatch):
    """Of several who wait in place, none asks more often than once a second until the end, which
    then wakes all of them.
    """
    flights = Flights(store, valid)
    mine = flights.claim(NAME, LEASE)
    contents = [make_content(store) for _ in range(4)]
    made = [Results(lambda content=content: content, Counters()) for content in contents]
    asked = []
    claim = store.leases.claim
    monkeypatch.setattr(store.leases, "claim", lambda *given: asked.append(1) or claim(*given))
    found = []

    def wait(results):
        found.append(results.find(NAME, LEASE, block=True, read=True))

    threads = [threading.Thread(target=wait, args=(results,)) for results in made]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(asked) >= 12, "all have asked several times")
    before = store.leases.read(NAME)
    record = Record(
        NAME,
        "task",
        "app",
        contents[0].writer.embed(contents[0].serializers.encode_exactly(5)).wire,  # as earlier
        1.0,
        mine.fence,
        0.0,
        2e12,
    )
    assert flights.settle(mine, write_record(record, contents[0].signing.keys), 60)()
    for thread in threads:
        thread.join(20)
    assert [each.value for each in found] == [5] * 4
    assert LEASE - before.ttl > 1.5, "twelve questions of four take at least two seconds"


def test_a_heartbeat_keeps_the_lease(store):
    """The lease of a computation that takes longer than its lease is renewed, until it ends."""
    flights = Flights(store, valid)
    mine = flights.claim(NAME, 0.3)
    renewed = []
    renew = store.leases.renew
    store.leases.renew = lambda *given: renewed.append(given) or renew(*given)
    wait_until(lambda: len(renewed) >= 4, "the lease was renewed")
    assert store.leases.read(NAME).owner == mine.owner
    flights.abandon(mine)
    assert store.leases.read(NAME) is None
    flights.abandon(mine)


def test_a_computation_that_was_given_up_is_not_renewed(store):
    """If a time limit interrupts a task before it knows of its computation, others take over."""
    flights = Flights(store, valid)
    flights.claim(NAME, 0.3)
    other = flights.claim("memo/task/app/other", 0.3)  # keeps the thread awake
    wait_until(lambda: isinstance(flights.claim(NAME, LEASE), Computation), "the lease has expired")
    flights.abandon(other)


@pytest.mark.parametrize("when", ("sent", "answered"))
def test_a_lost_answer_blocks_nobody(store, monkeypatch, when):
    """If the answer to a claim is lost, the lease that it may have taken is released."""
    claim = store.leases.claim

    def lost(*given):
        answer = claim(*given)

        def fail():
            answer()
            raise StoreUnavailable("cut")

        return fail if when == "answered" else fail()

    flights = Flights(store, valid)
    with monkeypatch.context() as patch, pytest.raises(StoreUnavailable):
        patch.setattr(store.leases, "claim", lost)
        flights.claim(NAME, LEASE)
    assert isinstance(flights.claim(NAME, LEASE), Computation)


def test_a_lost_settlement_fails_no_task(redis, raw, monkeypatch):
    """If the answer to the last request is lost, the task succeeds, and the lease is released."""
    memo = Memo(
        make_wire(store=f"redis://{redis.host}:{redis.port}/11", stats_interval=0, watch=False)
    )
    task = memo.task(small)
    leases = memo.wire.hook.store.leases

    def lost(*_given):
        def finish():
            raise StoreUnavailable("cut")

        return finish

    with monkeypatch.context() as patch:
        patch.setattr(leases, "settle", lost)
        assert memo.wire.run(task, 1) == [1, 1]
    assert memo.counts() == {"misses": 1, "uncached": 1}
    assert memo.wire.run(task, 1) == [1, 1]
    assert memo.counts() == {"misses": 2, "uncached": 1}
    memo.wire.hook.store.close()


def test_a_cluster_does_the_same(cluster):
    """In a Cluster, where a script can't have both keys, single flight takes more round trips."""
    store = open_store(cluster.url)
    one, two = Flights(store, valid), Flights(store, valid)
    mine = one.claim(NAME, LEASE)
    busy = two.claim(NAME, LEASE)
    assert isinstance(mine, Computation)
    assert isinstance(busy, Busy)
    assert 0 < busy.left <= LEASE
    assert one.settle(mine, b"record", 60)() is True
    assert two.claim(NAME, LEASE) == b"record"
    theirs = two.claim(NAME, LEASE, b"record")
    store.leases.release(NAME, theirs.owner)
    assert two.settle(theirs, b"late", 60)() is False
    assert store.pointers.read(NAME) == b"record"
    store.close()


@pytest.fixture
def memo(redis, raw):
    """Return memo tasks whose store is on Redis, and whose process knows its scripts."""
    memo = Memo(
        make_wire(store=f"redis://{redis.host}:{redis.port}/11", stats_interval=0, watch=False)
    )
    memo.once = memo.task(small)
    memo.plain = memo.wire.app.task(name="plain", shared=False)(small)
    for each in (memo.once, memo.plain):
        memo.wire.run(each, ROWS[1:])
    yield memo
    memo.wire.hook.store.close()


@pytest.mark.parametrize(
    ("args", "expected"),
    (
        ((1,), ["sent", "prerun", "answered"]),
        ((ROWS,), ["sent", "answered", "prerun"]),
    ),
)
def test_celery_prepares_a_task_while_the_server_answers(memo, monkeypatch, args, expected):
    """A call whose arguments are in its message waits for the record when its function is due;
    one with references waits before they would be read.
    """
    events = []
    claim = memo.wire.hook.store.leases.claim

    def sent(*given):
        events.append("sent")
        answer = claim(*given)
        return lambda: events.append("answered") or answer()

    def prerun(task_id, **_more):
        if task_id == result.id:
            events.append("prerun")

    monkeypatch.setattr(memo.wire.hook.store.leases, "claim", sent)
    # Strongly: before Celery 5.7, a dead receiver cuts traces of tasks off from new receivers.
    signals.task_prerun.connect(prerun, weak=False)
    result = memo.once.delay(*args)
    assert memo.wire.get(result)
    signals.task_prerun.disconnect(prerun)
    assert events == expected


def test_a_task_that_never_starts_lets_others_compute(memo):
    """If Celery ends a task before its function is due, its lease is released."""
    app, store = memo.wire.app, memo.wire.hook.store
    names = []
    claim = store.leases.claim
    store.leases.claim = lambda name, *given: names.append(name) or claim(name, *given)

    def ended(*_given):
        assert names, "it was looked up"
        raise SystemExit

    with pytest.raises(SystemExit):
        execute._tracer(app._offload, memo.once, ended)("some id", (2,), {}, {})
    assert isinstance(claim(names[0], "another", LEASE)().fence, int)


def calls_of(memo, task, arguments):
    """Return how many of offload's functions executing a call enters."""
    found = []
    for _ in range(3):  # the fewest, without those of finalizers
        task.delay(next(arguments))
        message = memo.wire.take()
        entered = Counter()

        def enter(frame, event, _argument, entered=entered):
            entered[event == "call" and PACKAGE in frame.f_code.co_filename] += 1

        sys.setprofile(enter)
        try:
            memo.wire.execute(message)
        finally:
            sys.setprofile(None)
        found.append(entered[True])
    return min(found)


def test_python_calls_of_a_computation(memo):
    """With small arguments and a small result, memo adds at most 85 calls of offload's functions:
    they are what it costs.
    """
    numbers = itertools.count()

    options = {"memo": 3600, "version": "1"}
    task = memo.wire.app.task(name="same", shared=False, offload=options)(same)
    memo.wire.app.finalize()
    calls_of(memo, task, numbers)  # warm up
    assert calls_of(memo, task, numbers) - calls_of(memo, memo.plain, numbers) <= 85


def test_python_calls_of_a_hit(memo):
    """A hit with a large argument takes at most 128 calls of offload's functions more than a small
    task, however large it is.
    """
    same = itertools.repeat(memo.wire.hook.put(ROWS))
    calls_of(memo, memo.once, same)  # compute
    assert calls_of(memo, memo.once, same) - calls_of(memo, memo.plain, itertools.count()) <= 128


def test_what_memo_costs_a_task(memo, monkeypatch):
    """A hit costs one round trip, small or large; a computation with a small result costs two."""
    task, plain = memo.once, memo.plain
    wire = Wire(monkeypatch)

    def cost(called, *args):
        result = called.delay(*args)
        before = wire.trips
        memo.wire.work()
        assert result.get(timeout=10)
        return wire.trips - before

    assert [cost(each, 1) for each in (plain, task, task)] == [0, 2, 1]
    read, released = 1, 1
    assert cost(plain, ROWS) == read + released
    assert cost(task, ROWS) == read + released + 2
    assert cost(task, ROWS) == released + 1


# -- brief computations of a worker


@pytest.fixture
def worker(memo, raw, monkeypatch):
    """Return memo tasks of a worker that sends nothing by itself, and counts when it would."""
    memo.wire.app._offload.is_worker = True
    memo.soon = 0

    def soon():
        memo.soon += 1

    monkeypatch.setattr(memo.wire.app._offload.part(memo_hooks.Memos), "_settle_soon", soon)
    clock = SimpleNamespace(now=0.0, step=0.0)

    def now():
        clock.now += clock.step
        return clock.now

    monkeypatch.setattr(execute.time, "perf_counter", now)
    memo.clock = clock
    return memo


def written(raw):
    """Return how many results the server has."""
    return len(raw.keys("offload:pointer:memo/*"))


def executing(memo, monkeypatch, *args):
    """Return how many round trips the worker makes for a call, publishing and reading excluded."""
    wire = Wire(monkeypatch)
    result = memo.once.delay(*args)
    before = wire.trips
    memo.wire.work()
    trips = wire.trips - before
    assert result.get(timeout=10)
    return trips


def test_a_brief_computation_takes_one_round_trip(worker, raw, monkeypatch):
    """A worker writes the result of a brief computation with its next request, so that different
    calls take one round trip each; it sees to it that there soon is a request.
    """
    before = written(raw)
    for number in range(1, 5):
        assert executing(worker, monkeypatch, number) == 1
        assert (worker.soon, written(raw)) == (number, before + number - 1)
    worker.wire.hook._runtime.content.holds.release_deferred()
    assert written(raw) == before + 4
    assert executing(worker, monkeypatch, 4) == 1
    assert worker.counts()["hits"] == 1


def test_an_equal_call_finds_what_waits_to_be_written(worker, raw, monkeypatch):
    """The request that looks a call up has written the process's earlier results before."""
    assert executing(worker, monkeypatch, 1) == 1
    assert executing(worker, monkeypatch, 1) == 1
    assert (worker.counts()["hits"], len(worker.runs)) == (1, 2)


@pytest.mark.parametrize("why", ("long", "large"))
def test_other_results_are_written_at_once(worker, raw, monkeypatch, why):
    """The result of a computation that others may wait for, and a large one, doesn't wait."""
    before = written(raw)
    if why == "long":
        worker.clock.step = flight.BRIEF * 1.01
    else:
        monkeypatch.setattr(results, "_INLINE", 0)
    executing(worker, monkeypatch, "text")
    assert worker.soon == 0
    assert written(raw) == before + 1


def test_a_brief_computation_without_its_lease_writes_nothing(worker, raw, monkeypatch):
    """If the lease was lost until the result is written, nothing is, and that is counted."""
    before = written(raw)
    leases = worker.wire.hook.store.leases

    def forget():
        [name] = leases.names("memo/")
        leases.release(name, leases.read(name).owner)

    worker.inside.append(forget)
    executing(worker, monkeypatch, 1)
    worker.wire.hook._runtime.content.holds.release_deferred()
    assert written(raw) == before
    assert worker.counts()["fenced"] == 1


def test_a_result_waits_for_the_end_of_an_outage(worker, raw, monkeypatch):
    """If the request that carries a result fails, the next one carries it."""
    before = written(raw)
    executing(worker, monkeypatch, 1)
    with monkeypatch.context() as patch, pytest.raises(StoreUnavailable):
        patch.setattr(store_client, "send", refuse)
        worker.wire.hook.store.pointers.read("any")
    assert written(raw) == before
    worker.wire.hook.store.pointers.read("any")
    assert written(raw) == before + 1


def test_a_worker_that_ends_or_idles_writes_its_results(memo, raw, monkeypatch):
    """A thread writes what no request has carried, soon, and when the process ends."""
    memo.wire.app._offload.is_worker = True
    monkeypatch.setattr(execute.time, "perf_counter", lambda: 0.0)
    before = written(raw)
    executing(memo, monkeypatch, 1)
    client = memo.wire.hook.store.client
    wait_until(lambda: not client._deferred, "the thread has taken the result")
    wait_until(lambda: written(raw) == before + 1, "it is written")
    releaser = memo.wire.app._offload.part(Releaser)
    monkeypatch.setattr(
        memo.wire.app._offload.part(memo_hooks.Memos),
        "_settle_soon",
        lambda: releaser.flush_soon(1000.0, postpone=True),
    )
    executing(memo, monkeypatch, 2)
    releaser.finish()
    assert not client._deferred
    assert written(raw) == before + 2


def test_a_postponed_flush_waits_for_the_last_result(memo):
    """Each further result postpones the thread's request, as a request has carried earlier ones;
    releases, of which that isn't known, don't.
    """
    releaser = memo.wire.app._offload.part(Releaser)
    releaser.flush_soon(2000.0)
    jobs = releaser._jobs.get()
    first = jobs.flush_at
    releaser.flush_soon(1000.0, postpone=True)
    sooner = jobs.flush_at
    releaser.flush_soon(1001.0, postpone=True)
    later = jobs.flush_at
    releaser.flush_soon(2000.0)
    assert sooner < later == jobs.flush_at < first
    releaser.finish()


@pytest.mark.parametrize("brief", (1000.0, 0.0))
def test_a_computation_that_just_began_is_waited_for_in_place(store, monkeypatch, brief):
    """An equal call waits in place for the end of a computation that has just begun, which wakes
    it; for one that takes longer, it comes back later.
    """
    monkeypatch.setattr(flight, "BRIEF", brief)
    content = make_content(store)
    mine = Flights(store, valid).claim(NAME, LEASE)
    here = Results(lambda: content, Counters())
    record = Record(NAME, "task", "app", "", 1.0, mine.fence, 0.0, 2e12, scalar(5))
    settled = write_record(record, content.signing.keys)
    waits = store.leases.wait_for_release
    asked = []

    def settle_and_wait(*given):
        asked.append(given)
        assert Flights(store, valid).settle(mine, settled, 60)()
        waits(*given)

    monkeypatch.setattr(store.leases, "wait_for_release", settle_and_wait)
    found = here.find(NAME, LEASE, block=False, read=True)
    assert len(asked) == bool(brief)
    assert found.value == 5 if brief else isinstance(found, Busy)
