"""`Lock` among processes that contend, are killed, are stopped, or have a wrong clock."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from offload import Lock, LockLost, open_store
from offload.testing.store import HOUR, unique
from tests.support.processes import wait_until

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

TTL = 1.5  # seconds
JOIN = 60.0
PROCESSES, TURNS = 4, 4


@pytest.fixture(params=("file", "sqlite", "redis", "cluster", "s3", "tiers"))
def urls(request, tmp_path):
    """The store's URL or URLs; what opening it imports is imported, for all children."""
    s3 = lambda: request.getfixturevalue("s3").url(unique())
    urls = {
        "file": lambda: f"file://{tmp_path}/store",
        "sqlite": lambda: f"sqlite://{tmp_path}/store.db",
        "redis": lambda: request.getfixturevalue("redis").url,
        "cluster": lambda: request.getfixturevalue("cluster").url,
        "s3": s3,
        "tiers": lambda: [request.getfixturevalue("redis").url, s3()],
    }[request.param]()
    open_store(urls).close()
    return urls


@pytest.fixture
def name():
    return unique("lock")


class Child:
    """A forked process that runs *function* with a connection to the test and *args*."""

    def __init__(self, function, *args):
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=function, args=(theirs, *args))
        self._process.start()
        theirs.close()

    def signal(self, number):
        os.kill(self._process.pid, number)

    def get(self):
        assert self.pipe.poll(JOIN), "the child said nothing"
        return self.pipe.recv()

    def finish(self, code=0):
        self._process.join(JOIN)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        assert self._process.exitcode == code


def take_turns(pipe, urls, name, folder, turns):
    """Acquire the lock some times; fail if another process is in its block as well."""
    lock = Lock(open_store(urls), name, ttl=60)
    for _ in range(turns):
        with lock:
            inside = Path(folder, "inside")
            inside.touch(exist_ok=False)
            with Path(folder, "fences").open("a") as fences:
                fences.write(f"{lock.fence}\n")
            inside.unlink()
    pipe.send("done")


def hold(pipe, urls, name, ttl):
    """Acquire the lock, say so, and hold it until the test says something."""
    lock = Lock(open_store(urls), name, ttl=ttl)
    assert lock.acquire(timeout=JOIN)
    pipe.send(lock.fence)
    pipe.recv()
    lock.release()


def test_contenders_take_turns(urls, name, tmp_path):
    """Of many processes one at a time has the lock, and the fence rises with every owner."""
    children = [Child(take_turns, urls, name, tmp_path, TURNS) for _ in range(PROCESSES)]
    for child in children:
        child.finish()
    fences = list(map(int, (tmp_path / "fences").read_text().split()))
    assert len(fences) == PROCESSES * TURNS
    assert fences == sorted(set(fences))


def test_a_heartbeat_outlasts_the_ttl(urls, name):
    """While its owner lives, nobody else gets the lock, however long that takes."""
    owner = Child(hold, urls, name, TTL)
    owner.get()
    assert not Lock(open_store(urls), name).acquire(timeout=2.5 * TTL)
    owner.pipe.send("release")
    owner.finish()
    lock = Lock(open_store(urls), name)
    assert lock.acquire(timeout=JOIN)
    lock.release()


def test_a_killed_owner_is_replaced_by_one(urls, name, tmp_path):
    """After SIGKILL of the owner, each contender gets the lock in turn, within its ttl."""
    owner = Child(hold, urls, name, TTL)
    first = owner.get()
    owner.signal(signal.SIGKILL)
    owner.finish(-signal.SIGKILL)
    children = [Child(take_turns, urls, name, tmp_path, 1) for _ in range(PROCESSES)]
    for child in children:
        child.finish()
    fences = list(map(int, (tmp_path / "fences").read_text().split()))
    assert len(fences) == PROCESSES
    assert [first, *fences] == sorted({first, *fences})


def write(path, fence, value):
    """Write a value to a database that refuses smaller fences; return whether it took it."""
    with closing(sqlite3.connect(path, timeout=JOIN)) as database, database:
        changed = database.execute("update record set fence = ?, value = ? where fence <= ?",
                                   (fence, value, fence))  # fmt: skip
        return changed.rowcount == 1


def write_late(pipe, urls, name, path):
    """Acquire the lock, and write only when the test says so; report what came of it."""
    lock = Lock(open_store(urls), name, ttl=TTL)
    assert lock.acquire(timeout=JOIN)
    fence = lock.fence
    pipe.send(write(path, fence, "early"))
    pipe.recv()
    outcome = {"lost": lock.lost, "late write": write(path, fence, "late")}
    try:
        lock.release()
    except LockLost:
        outcome["release"] = "LockLost"
    pipe.send(outcome)


def test_a_stopped_owner_is_fenced_off(urls, name, tmp_path):
    """An owner stopped past its ttl loses the lock; its late write with the old fence is refused,
    and its release leaves the new owner alone.
    """
    path = tmp_path / "record.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("create table record (fence integer, value text)")
        database.execute("insert into record values (0, '')")
    former = Child(write_late, urls, name, path)
    assert former.get()
    former.signal(signal.SIGSTOP)
    lock = Lock(open_store(urls), name, ttl=60)
    try:
        assert lock.acquire(timeout=JOIN)
        assert write(path, lock.fence, "new")
    finally:
        former.signal(signal.SIGCONT)
    former.pipe.send("write")
    assert former.get() == {"lost": True, "late write": False, "release": "LockLost"}
    former.finish()
    assert lock.owned()
    lock.release()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("select value from record").fetchone() == ("new",)


def try_ahead(pipe, urls, name, seconds):
    """Try to acquire the lock by a clock that is ahead; report whether that worked."""
    now, steady = time.time, time.monotonic
    time.time = lambda: now() + seconds
    time.monotonic = lambda: steady() + seconds
    lock = Lock(open_store(urls), name, ttl=TTL, heartbeat=False)
    pipe.send(lock.acquire(blocking=False))


@pytest.mark.parametrize("seconds", (HOUR, -HOUR))
def test_clocks_an_hour_apart_give_one_winner(urls, name, seconds):
    """A process whose clock is off can't take a lock that is held, and its own lasts as long."""
    lock = Lock(open_store(urls), name, ttl=60)
    lock.acquire()
    for expected in (False, True):
        child = Child(try_ahead, urls, name, seconds)
        assert child.get() == expected
        child.finish()
        if not expected:
            lock.release()
    assert not lock.acquire(blocking=False)
    assert lock.acquire(timeout=JOIN)
    lock.release()


@pytest.mark.parametrize("server", ("redis", "cluster"))
def test_a_release_wakes_all_that_wait(request, server, name):
    """On Redis, everyone who waits for a release learns of it at the second check."""
    url = request.getfixturevalue(server).url
    owner = Child(hold, url, name, 60)
    owner.get()
    waited = []

    def wait():
        waited.append(Lock(open_store(url), name).wait(initial=50, maximum=50))

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    servers = open_store(url).client
    blocked = lambda: sum(info["blocked_clients"] for _, info in servers.each_server("INFO"))
    wait_until(lambda: blocked() >= len(threads), "all wait")
    owner.pipe.send("release")
    owner.finish()
    for thread in threads:
        thread.join(JOIN / 3)
    assert len(waited) == 3
    assert all(waited)
    assert max(each.checks for each in waited) <= 2
