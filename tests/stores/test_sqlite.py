"""What is special about a store in a SQLite file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
from contextlib import closing

import pytest

from offload import ConfigurationError, StoreError, StoreUnavailable
from offload.digest import digest_of
from offload.stores import open_store
from offload.stores.sqlite import SQLiteStore, database
from offload.testing.store import HOUR, FakeClock, blob, blobs, contents

FORK = multiprocessing.get_context("fork")
JOIN = 60.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "offload.db"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(path, clock):
    store = SQLiteStore(path, clock=clock)
    yield store
    store.close()


def run(function, *args):
    process = FORK.Process(target=function, args=args)
    process.start()
    process.join(JOIN)
    assert process.exitcode == 0


def sizes(path):
    return sum(each.stat().st_size for each in path.parent.iterdir())


def test_opening_writes_nothing(path):
    """A store that isn't used creates no file."""
    open_store(f"sqlite://{path}")
    assert not path.parent.exists()


def test_any_text_may_be_a_prefix(store):
    """A prefix that no name can have finds none, and others find exactly the names with it."""
    names = ["B", "a", "a/b", "a/bc", "a0", "ab", "z", "zz+"]
    for name in names:
        store.pointers.swap(name, None, b"1")
        store.leases.acquire(name, "me", 60)
    for prefix in ("", "a", "a/", "a/b", "z", "zz", "~", "é", "a~", "A", "a/bcd"):
        expected = [name for name in names if name.startswith(prefix)]
        assert sorted(store.pointers.names(prefix)) == expected
        assert sorted(store.leases.names(prefix)) == expected


def test_its_files_are_private_or_have_the_mode_given(path):
    """Only the owner may read the file, or those whom `mode` allows, whatever the umask."""
    for mode, wanted in ((None, 0o600), (0o660, 0o660)):
        each = path.with_name(f"{wanted}.db")
        store = SQLiteStore(each, mode=mode)
        store.pointers.swap("p", None, b"1")
        found = [file for file in path.parent.iterdir() if file.name.startswith(each.name)]
        assert len(found) > 1  # the log as well
        assert {file.stat().st_mode & 0o777 for file in found} == {wanted}
        store.close()


@pytest.mark.parametrize("url", ("sqlite://", "sqlite://host/x.db", "sqlite:///", "sqlite:///x/"))
def test_other_urls_are_refused(url):
    """A URL names a file by an absolute path."""
    with pytest.raises(ConfigurationError, match="sqlite:///path/to/"):
        open_store(url)


# -- killed processes and forks


def put_forever(path, pipe):
    store = SQLiteStore(path, fsync=False)
    number = 0
    while True:
        content = b"%d:" % number + bytes(200_000)
        store.blobs.put({digest_of([content]): [content]}, HOUR)
        store.pointers.swap("last", store.pointers.read("last"), b"%d" % number)
        pipe.send(number)
        number += 1


def test_kill_9_during_a_write_loses_nothing(path):
    """Whatever a call stored before its process was killed is whole in the next process."""
    for count in range(3, 13):
        ours, theirs = FORK.Pipe(duplex=False)
        child = FORK.Process(target=put_forever, args=(path, theirs))
        child.start()
        theirs.close()
        last = [ours.recv() for _ in range(count)][-1]
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        store = SQLiteStore(path)
        assert int(store.pointers.read("last")) >= last
        for number in range(last + 1):
            content = b"%d:" % number + bytes(200_000)
            assert contents(store, [digest_of([content])]) == [content]
        store.close()


def test_a_fork_in_the_middle_of_a_transaction_waits(store):
    """A process forks only between transactions, so its child can write at once."""
    entered, leave = threading.Event(), threading.Event()

    def hold_transaction():
        with store.database.writing():
            entered.set()
            assert leave.wait(JOIN)

    thread = threading.Thread(target=hold_transaction)
    thread.start()
    assert entered.wait(JOIN)
    forked = []

    def fork():
        run(lambda: store.pointers.swap("child", None, b"1") or os._exit(1))
        forked.append(True)

    forking = threading.Thread(target=fork)
    forking.start()
    forking.join(0.2)
    assert not forked
    leave.set()
    thread.join(JOIN)
    forking.join(JOIN)
    assert forked
    assert store.pointers.read("child") == b"1"
    assert store.pointers.swap("parent", None, b"1")


def test_no_connection_crosses_a_fork(store):
    """A child opens a connection of its own, and so does its parent after the fork."""
    store.pointers.swap("p", None, b"1")
    before = store.database._connection
    assert before is not None

    def child():
        assert store.database._connection is None
        assert store.pointers.swap("p", b"1", b"2")

    run(child)
    assert store.pointers.read("p") == b"2"
    assert store.database._connection is not before


def open_at_once(path, barrier, number):
    barrier.wait(JOIN)
    store = SQLiteStore(path)
    assert store.pointers.swap(f"p{number}", None, b"1")


def test_processes_may_create_the_file_at_once(path):
    """Many processes that open a new store at the same time all succeed."""
    for attempt in range(3):
        each = path.with_name(f"{attempt}.db")
        barrier = FORK.Barrier(8)
        children = [FORK.Process(target=open_at_once, args=(each, barrier, n)) for n in range(8)]
        for child in children:
            child.start()
        for child in children:
            child.join(JOIN)
        assert [child.exitcode for child in children] == [0] * 8
        store = SQLiteStore(each)
        assert len(list(store.pointers.names("p"))) == 8
        store.close()


def test_threads_fork_one_after_another(store):
    """While one thread forks, another's fork doesn't open its connection again."""
    real = store.database._lock
    entered, leave = threading.Event(), threading.Event()

    class Lock:
        acquire, locked = real.acquire, real.locked

        def release(self):
            real.release()
            entered.wait(0.2)  # where the other thread's fork could begin

    def fork():
        database._before_fork()
        entered.set()
        assert leave.wait(JOIN)
        database._after_fork()

    store.database._lock = Lock()
    database._before_fork()
    other = threading.Thread(target=fork)
    other.start()
    database._after_fork()
    assert entered.wait(JOIN)
    try:
        assert store.database in database._forking
        assert real.locked()
    finally:
        leave.set()
        other.join(JOIN)
        store.database._lock = real
    assert not real.locked()


# -- space


def test_a_sweep_frees_space(store, path, clock):
    """After a sweep, the file is about as small as before the blobs that have expired."""
    kept, content = blob(100_000)
    store.blobs.put({kept: [content]}, 10 * HOUR)
    list(store.sweep())
    before = sizes(path)
    old = blobs(20, 500_000)
    store.blobs.put(old, HOUR)
    assert sizes(path) > before + 10_000_000
    clock.advance(HOUR + 1)
    assert {item.name for item in store.sweep(dry_run=True)} == set(old)
    swept = list(store.sweep())
    assert {(item.kind, item.name, item.size) for item in swept} == {
        ("blob", digest, 500_000) for digest in old
    }
    assert sizes(path) < before + 500_000
    assert list(store.sweep()) == []
    assert contents(store, [kept]) == [content]


def test_storing_reuses_the_space_of_what_expired(store, path, clock):
    """Without any sweep, the file doesn't grow while as much expires as is stored."""
    for _ in range(5):
        store.blobs.put(blobs(5, 200_000), HOUR)
        clock.advance(HOUR + 1)
    with store.database.reading() as connection:
        before = connection.execute("PRAGMA page_count").fetchone()
        assert connection.execute("SELECT count(*) FROM hold").fetchone() == (0,)
    for _ in range(10):
        store.blobs.hold([digest_of([os.urandom(8)])], HOUR, "task:x")
        store.blobs.put(blobs(5, 200_000), HOUR)
        clock.advance(HOUR + 1)
    with store.database.reading() as connection:
        assert connection.execute("PRAGMA page_count").fetchone() <= (before[0] + 16,)
        assert connection.execute("SELECT count(*) FROM hold").fetchone()[0] <= 8


def test_a_sweep_ends_after_an_operators_vacuum(store, path, clock):
    """A sweep ends as well where the file can't shrink step by step any more."""
    store.blobs.put(blobs(5, 100_000), HOUR)
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as operator:
        operator.execute("PRAGMA auto_vacuum = NONE")
        operator.execute("VACUUM")
    clock.advance(HOUR + 1)
    sweeping = threading.Thread(target=lambda: list(store.sweep()), daemon=True)
    sweeping.start()
    sweeping.join(JOIN / 6)
    assert not sweeping.is_alive()


# -- faults


def test_a_busy_file_is_unavailable(path):
    """If other processes write all the time, the call fails as one worth a retry."""
    store = SQLiteStore(path, timeout=0.05)
    store.pointers.swap("p", None, b"1")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="other processes locked it"):
            store.pointers.swap("p", b"1", b"2")
        assert store.pointers.read("p") == b"1"  # readers don't wait
        assert list(store.sweep(dry_run=True)) == []  # nor does a dry run
    assert store.pointers.swap("p", b"1", b"2")
    store.close()


def test_a_full_disk_is_unavailable(store):
    """If there is no room, nothing is stored, and the call fails as one worth a retry."""
    store.pointers.swap("p", None, b"1")
    with store.database.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 5}")
    digest, content = blob(2_000_000)
    with pytest.raises(StoreUnavailable, match="its disk is full"):
        store.blobs.put({digest: [content]}, HOUR)
    assert store.blobs.hold([digest], HOUR) == {digest}
    assert store.pointers.swap("p", b"1", b"2")


def test_another_file_is_refused(path):
    """A file that isn't SQLite's, and a folder in its place, are refused with what to do."""
    path.parent.mkdir()
    path.write_bytes(b"something else " * 1000)
    with pytest.raises(StoreError, match="another program wrote this file"):
        SQLiteStore(path).pointers.read("p")
    assert path.read_bytes() == b"something else " * 1000
    with pytest.raises(StoreError, match="check the path"):
        SQLiteStore(path.parent).pointers.read("p")


def test_another_programs_database_is_refused(path):
    """A database with other tables is left as it is."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE orders (number)")
        other.commit()
        before = path.read_bytes()
        with pytest.raises(StoreError, match="another program wrote this file"):
            SQLiteStore(path).pointers.swap("p", None, b"1")
        assert path.read_bytes() == before


def test_a_newer_file_is_refused(store, path):
    """A file of a newer version is left as it is."""
    store.pointers.swap("p", None, b"1")
    store.close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer version of offload"):
        SQLiteStore(path).pointers.swap("p", b"1", b"2")
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT value FROM pointer").fetchall() == [(b"1",)]


def test_a_replaced_file_is_opened_again(store, path):
    """After an operator deletes the file, all processes share the new one."""
    store.pointers.swap("p", None, b"1")
    for file in list(path.parent.iterdir()):
        file.unlink()
    assert store.pointers.read("p") is None
    assert store.pointers.swap("q", None, b"2")
    other = SQLiteStore(path)
    assert other.pointers.read("q") == b"2"
    other.close()


def test_an_interrupted_transaction_changes_nothing(store):
    """An exception between two statements, such as a time limit, undoes the first."""
    with pytest.raises(ZeroDivisionError), store.database.writing() as connection:
        connection.execute("INSERT INTO pointer VALUES ('half', x'00')")
        _ = 1 / 0
    assert store.pointers.read("half") is None
    assert store.pointers.swap("whole", None, b"1")


@pytest.mark.parametrize("call", ("count_holders", "find"))
def test_a_list_interrupted_between_rows_blocks_no_write(store, path, call):
    """After an exception while rows are read, such as a time limit, the process can still write."""
    many = blobs(8, 10)
    store.blobs.put(many, HOUR)
    store.blobs.hold(list(many), HOUR, "task:x")
    lines = []

    def trace(frame, event, _arg):
        if frame.f_code.co_name not in ("_holds", "_column", "<setcomp>"):
            return None
        if event == "line":
            lines.append(frame.f_lineno)
            if lines.count(frame.f_lineno) == 5:  # only a loop repeats a line that often
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt) as interrupted:  # its traceback keeps the frames
            getattr(store.blobs, call)(list(many) if call == "count_holders" else "")
    finally:
        sys.settrace(before)
    other = SQLiteStore(path)
    other.pointers.swap("p", None, b"1")
    other.close()
    assert store.pointers.swap("p", b"1", b"2")
    assert interrupted.tb


def test_a_blob_over_the_limit_is_not_loaded(store):
    """A blob of more bytes than the reader expects is refused."""
    digest, content = blob(1000)
    store.blobs.put({digest: [content]}, HOUR)
    with pytest.raises(StoreError, match="larger than the limit"):
        list(store.blobs.get([digest], 999))


@pytest.mark.parametrize("value", ("text", b"bytes", 1e300))
def test_a_row_with_another_type_stops_nothing(store, path, value):
    """A time that isn't a number, which only others write, doesn't stop lists, sweeps, or locks."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    store.blobs.hold([digest], HOUR, "task:1")
    store.leases.acquire("l", "me", HOUR)
    with closing(sqlite3.connect(path)) as connection:
        for table in ("blob", "hold", "lease"):
            connection.execute(f"UPDATE {table} SET until = ?", (value,))
        connection.commit()
    assert [info.digest for info in store.blobs.scan()] == [digest]
    assert [peek.size for peek in store.blobs.peek([digest], 5)] == [len(content)]
    assert list(store.blobs.sweep(dry_run=False)) == []
    assert store.leases.read("l").owner == "me"
    if value != 1e300:
        assert store.leases.acquire("l", "you", HOUR)
