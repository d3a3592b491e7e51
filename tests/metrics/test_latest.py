"""The record of the latest errors: what it keeps, its limits, and processes that share it."""

from __future__ import annotations

import threading

import pytest

from offload import Counters
from offload.errors import BlobMissing, StoreUnavailable
from offload.metrics.latest import ErrorLog, LatestErrors, Noted, error_log_of
from offload.metrics.recorder import Recorder
from offload.stores.memory import MemoryStore
from offload.testing.store import FakeClock
from tests.support.processes import wait_until

NOW = 1_700_000_000.0


@pytest.fixture
def store(request):
    return MemoryStore(request.node.name)


@pytest.fixture
def log(store):
    return ErrorLog(store.pointers, clock=lambda: NOW)


def noted(argument="rows", *, at=NOW, count=1, kind="errors_missing", text="BlobMissing: gone"):
    return Noted(kind, "shop.report", argument, at, count, text)


def test_the_latest_of_each_argument_is_kept(log):
    """Of each kind, task, and argument, the record has the latest error and how many there were."""
    assert log.read() == []
    log.add([noted(at=NOW - 9, text="old"), noted("title", at=NOW - 5)])
    log.add([noted(at=NOW - 1, count=2, text="new")])
    log.add([noted(at=NOW - 7, text="late")])
    assert log.read() == [
        noted(at=NOW - 1, count=4, text="new"),
        noted("title", at=NOW - 5),
    ]


def test_the_record_is_bounded(log, store):
    """However many tasks fail, the record fits into a pointer and has the newest."""
    for start in range(0, 200, 20):
        log.add(
            [
                noted(f"{n:03}" + "ü" * 197, at=NOW + n, text="x" * 300)
                for n in range(start, start + 20)
            ]
        )
    assert len(store.pointers.read("stats/errors")) <= 48 << 10
    assert log.read()[0].argument.startswith("199")
    assert 20 <= len(log.read()) <= 60


@pytest.mark.parametrize(
    "content",
    (
        b"\xff",
        b"[]",
        b'{"version":2,"errors":[]}',
        b'{"version":1,"errors":7}',
        b'{"version":1,"errors":[{"kind":"errors_missing"}]}',
        b'{"version":1,"errors":[{"kind":1,"task":"","argument":"","at":1,"count":1,"text":""}]}',
        b'{"version":1,"errors":[{"kind":"","task":"","argument":"","at":"","count":1,"text":""}]}',
        *(
            b'{"version":1,"errors":[{"kind":"","task":"","argument":"","at":%b,"count":%b,"text":""}]}'
            % pair
            for pair in ((b"9" * 400, b"1"), (b"1e999", b"1"), (b"NaN", b"1"), (b"1", b"9" * 400))
        ),
        b"[" * 60_000,
    ),
)
def test_a_damaged_record_is_empty(log, store, content):
    """A record that others wrote is empty, and is replaced by the next error."""
    store.pointers.swap("stats/errors", None, content)
    assert log.read() == []
    log.add([noted()])
    assert log.read() == [noted()]


def test_old_errors_and_those_of_wrong_clocks_are_omitted(log):
    """Errors of more than 30 days ago, and of the future, aren't shown."""
    log.add([noted("a", at=NOW - 31 * 86400), noted("b", at=NOW + 3600), noted("c")])
    assert log.read() == [noted("c")]


def test_it_is_cleared(log):
    """A reset forgets all errors; one more changes nothing."""
    log.add([noted()])
    log.clear()
    log.clear()
    assert log.read() == []


def test_concurrent_writers_lose_nothing(log):
    """Errors of threads that write at once are all in the record."""

    def write(name):
        while not log.add([noted(name)]):
            pass

    threads = [threading.Thread(target=write, args=(f"a{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {each.argument for each in log.read()} == {f"a{n}" for n in range(8)}


def test_texts_are_those_of_our_errors():
    """The text of an offload error is kept; of any other, which may have values, only its type."""
    errors = LatestErrors(clock=lambda: NOW)
    errors.note("errors_missing", "shop.report", "rows", BlobMissing("blob b3:12 is missing"))
    errors.note("errors_other", "shop.report", "rows", ValueError("the secret"))
    texts = {each.kind: each.text for each in errors.take()}
    assert texts == {
        "errors_missing": "BlobMissing: blob b3:12 is missing",
        "errors_other": "ValueError",
    }
    assert not errors


def test_what_waits_is_bounded():
    """A process keeps a limited number of errors with limited texts."""
    errors = LatestErrors(clock=lambda: NOW)
    for number in range(1000):
        errors.note("errors_missing", "t" * 9999, f"a{number}", BlobMissing("m" * 9999))
    taken = errors.take()
    assert len(taken) == 40
    assert len(taken[0].task) == 200
    assert len(taken[0].text) == 300


def test_an_idle_process_writes_its_errors(store):
    """An error is written an interval after it happened, though nothing else is counted."""
    counters = Counters()
    clock, waits = FakeClock(100.0), []
    recorder = Recorder(counters, 10, clock=clock, sleep=waits.append)
    recorder.attach(store)
    with counters.about("shop.report", "rows"):
        counters.failed(StoreUnavailable("it is unavailable"))
    log = error_log_of(store)
    assert log is not None
    wait_until(log.read, "the error is written")
    [found] = log.read()
    assert (found.kind, found.task, found.argument) == ("errors_unavailable", "shop.report", "rows")
    assert waits[0] == 10


class _Failing:
    """Pointers of a store that is unavailable for some time."""

    def __init__(self, pointers):
        self.pointers, self.fails = pointers, True

    def read(self, name):
        if self.fails:
            raise StoreUnavailable("it is unavailable")
        return self.pointers.read(name)

    def swap(self, *words):
        return self.pointers.swap(*words)


def test_errors_wait_for_the_store(store):
    """Errors that couldn't be written are written later."""
    counters = Counters()
    recorder = Recorder(counters, 10, clock=FakeClock(0.0), sleep=lambda _: None)
    recorder.attach(store)
    recorder._log = ErrorLog(failing := _Failing(store.pointers))
    counters.errors.note("errors_missing", "shop.report", "rows", BlobMissing("gone"))
    recorder.write()
    assert counters.errors
    failing.fails = False
    recorder.write()
    assert [each.argument for each in recorder._log.read()] == ["rows"]
