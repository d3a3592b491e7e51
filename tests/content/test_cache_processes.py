"""Real processes share one download through the node cache, whichever is killed or forked."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

from tests.content.cache_parts import CHUNKS, FORK, LARGE, SECONDS, Child, Machine, noise

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="flock, /proc and tmpfs")

FILE = LARGE + 4096
NEVER = 10**6  # seconds of patience; a wait for nothing runs into the tests' timeout


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "cache")


def wait_for(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def right(value, seed=1):
    return bool(np.array_equal(value, noise(LARGE, seed)))


def stop_at(number, reached):
    """Return a function that hangs its process forever when it reads chunk *number*."""

    def before(count):
        if count == number:
            reached.set()
            threading.Event().wait(SECONDS)

    return before


def test_processes_that_need_a_value_at_once_fetch_it_once(machine):
    """Of many processes that need a new value at once, one reads the store."""
    ref = machine.put(noise(LARGE))
    many = 6
    waiting = FORK.Array("b", many)

    def wait_for_the_others(number):
        deadline = time.monotonic() + 5
        while number == 1 and sum(waiting) < many - 1 and time.monotonic() < deadline:
            time.sleep(0.001)

    machine.store.blobs.before = wait_for_the_others

    def read(index):
        def sleep(seconds):
            waiting[index] = 1
            time.sleep(seconds)

        reader = machine.reader(sleep=sleep, patience=NEVER)
        return right(reader.get(ref)), reader.counted()

    found = [child.result() for child in [Child(read, index) for index in range(many)]]
    assert all(good for good, _ in found)
    assert sum(waiting) == many - 1
    assert machine.store.take_reads() == 1 + CHUNKS
    counted = sorted(repr(counts) for _, counts in found)
    assert counted == ["{'hits': 1}"] * (many - 1) + ["{'misses': 1}"]


def test_threads_that_need_a_value_at_once_fetch_it_once(machine):
    """Of many threads that need a new value at once, one reads the store."""
    ref = machine.put(noise(LARGE))
    ready = threading.Barrier(4)
    reader = machine.reader(patience=NEVER)
    found = []

    def read():
        ready.wait()
        found.append(right(reader.get(ref)))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == [True] * 4
    assert machine.store.take_reads() == 1 + CHUNKS


def test_a_waiting_process_takes_over_from_a_killed_one(machine):
    """After SIGKILL during a download, a waiting process takes over at once."""
    ref = machine.put(noise(LARGE))
    reached, waits = FORK.Event(), FORK.Event()
    machine.store.blobs.before = stop_at(2, reached)
    killed = Child(lambda: machine.reader().get(ref))
    assert reached.wait(SECONDS)
    machine.store.blobs.before = lambda number: None

    def sleep(seconds):
        waits.set()
        time.sleep(seconds)

    def read():
        reader = machine.reader(patience=NEVER, sleep=sleep)
        return right(reader.get(ref)), reader.counted()

    waiting = Child(read)
    assert waits.wait(SECONDS)
    assert machine.part(ref).stat().st_size > LARGE
    killed.kill()
    assert waiting.result() == (True, {"misses": 1})
    assert machine.names() == {machine.file(ref).name}


def test_leftovers_of_a_killed_process_take_no_room(machine):
    """The partial file of a killed process is removed when another value is cached."""
    ref, other = machine.put(noise(LARGE)), machine.put(noise(LARGE, 2))
    reached = FORK.Event()
    machine.store.blobs.before = stop_at(2, reached)
    killed = Child(lambda: machine.reader().get(ref))
    assert reached.wait(SECONDS)
    machine.store.blobs.before = lambda number: None
    killed.kill()
    assert machine.names() == {machine.part(ref).name}
    reader = machine.reader(size=FILE)
    reader.get(other)
    assert machine.names() == {machine.file(other).name}
    assert reader.counted() == {"misses": 1}


def test_a_child_of_a_killed_process_holds_nothing(machine):
    """A child that was forked during its parent's download doesn't hold the parent's lock."""
    ref = machine.put(noise(LARGE))
    reached, done = FORK.Event(), FORK.Event()
    machine.store.blobs.before = stop_at(2, reached)

    def download_and_fork():
        threading.Thread(target=lambda: machine.reader().get(ref), daemon=True).start()
        assert reached.wait(SECONDS)
        pid = os.fork()
        if pid == 0:
            done.wait(SECONDS)
            os._exit(0)
        return pid

    parent = Child(lambda: (download_and_fork(), os.kill(os.getpid(), 9)))
    os.waitpid(parent.process.pid, 0)
    machine.store.blobs.before = lambda number: None
    try:
        reader = Child(lambda: right(machine.reader(patience=NEVER).get(ref)))
        assert reader.result()
    finally:
        done.set()


@pytest.mark.parametrize("name", ("flock", "close"))
def test_a_fork_never_inherits_a_lock(machine, monkeypatch, name):
    """A fork at the moment in which another thread takes or releases a lock leaves the child
    without it.
    """
    folder = machine.reader().folder
    folder.check()
    module = fcntl if name == "flock" else os
    original = getattr(module, name)
    there, forked, done = threading.Event(), threading.Event(), FORK.Event()

    def take():
        with folder._locked():
            pass

    taking = threading.Thread(target=take)

    def slow(*args):
        if name == "flock":
            original(*args)
        if threading.current_thread() is taking:
            there.set()
            forked.wait(0.2)
        if name == "close":
            original(*args)

    monkeypatch.setattr(module, name, slow)
    taking.start()
    assert there.wait(SECONDS)
    monkeypatch.undo()
    child = FORK.Process(target=done.wait, args=(SECONDS,))
    child.start()
    forked.set()
    taking.join(SECONDS)

    def is_free():
        with (machine.path / "lock").open() as again, suppress(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    try:
        wait_for(is_free)
    finally:
        done.set()
        child.join(SECONDS)


def test_a_reader_from_before_a_fork_serves_both(machine):
    """A content store with a cache works on both sides of a fork, also after it was used."""
    refs = [machine.put(noise(LARGE, seed)) for seed in range(3)]
    reader = machine.reader()
    value = reader.get(refs[0])

    def use():
        seen = right(value, 0)
        value[:] = 0
        return seen and all(right(reader.get(ref), seed) for seed, ref in enumerate(refs))

    assert [child.result() for child in [Child(use), Child(use)]] == [True, True]
    assert right(value, 0)
    assert right(reader.get(refs[2]), 2)
    assert machine.store.take_reads() == 3 * (1 + CHUNKS)


def test_writes_are_private_to_a_process(machine):
    """A write to a mapped value stays in its process, even while others have it mapped."""
    ref = machine.put(noise(LARGE))
    written, read = FORK.Event(), FORK.Event()

    def write():
        value = machine.reader().get(ref)
        value[:] = 0
        written.set()
        assert read.wait(SECONDS)
        return int(value.sum())

    mine = machine.reader().get(ref)
    writer = Child(write)
    assert written.wait(SECONDS)
    assert right(mine)
    assert right(machine.reader(verify="always").get(ref))
    read.set()
    assert writer.result() == 0
    assert machine.store.take_reads() == 1 + CHUNKS


def test_the_limit_holds_across_processes(machine):
    """However many processes cache and evict values, all files together never exceed the limit, and
    every value is correct.
    """
    values = [noise(LARGE, seed) for seed in range(7)]
    refs = [machine.put(value) for value in values]
    bound = 3 * FILE
    rounds = 6
    done = FORK.Value("i", 0)

    def read(index):
        reader = machine.reader(size=bound, patience=NEVER)
        order = np.random.default_rng(index)
        try:
            return all(
                np.array_equal(reader.get(refs[seed]), values[seed])
                for _ in range(rounds)
                for seed in order.permutation(len(refs)).tolist()
            ), reader.counted()
        finally:
            with done.get_lock():
                done.value += 1

    children = [Child(read, index) for index in range(4)]
    wait_for((machine.path / "lock").exists)
    most = 0
    with (machine.path / "lock").open() as lock:
        while done.value < len(children):
            fcntl.flock(lock, fcntl.LOCK_EX)
            most = max(most, sum(sizes(machine)))
            fcntl.flock(lock, fcntl.LOCK_UN)
    found = [child.result() for child in children]
    assert all(good for good, _ in found)
    assert sum(counts.get("evicted", 0) for _, counts in found) > 3
    assert sum(counts.get("hits", 0) for _, counts in found) > 3
    assert 0 < most <= bound
    assert not [name for name in machine.names() if name.endswith(".part")]


def sizes(machine):
    """Yield the size of each file, except empty parts, which come and go without the lock."""
    for name in machine.names():
        with suppress(FileNotFoundError):
            yield (machine.path / name).stat().st_size


GEVENT = """
from gevent import monkey; monkey.patch_all()
import sys, gevent
from pathlib import Path
from tests.content.cache_parts import CHUNKS, LARGE, Machine, noise

machine = Machine(Path(sys.argv[1]) / "cache")
ref = machine.put(noise(LARGE))
waiting = []

def sleep(seconds):
    waiting.append(gevent.getcurrent())
    gevent.sleep(seconds)

def before(number):
    while len(set(waiting)) < 3:  # a hub that is blocked never gets here again
        gevent.sleep(0.001)

machine.store.blobs.before = before
reader = machine.reader(sleep=sleep)
jobs = [gevent.spawn(reader.get, ref) for _ in range(4)]
gevent.joinall(jobs, timeout=30, raise_error=True)
assert all((job.value == noise(LARGE)).all() for job in jobs)
assert machine.store.take_reads() == 1 + CHUNKS
assert reader.counted() == {"misses": 1, "hits": 3}, reader.counted()
print("good")
"""


def test_greenlets_wait_without_blocking_each_other(tmp_path):
    """With gevent, greenlets that wait for a value let the one that fetches it continue."""
    pytest.importorskip("gevent")
    done = subprocess.run(
        [sys.executable, "-c", GEVENT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.stdout == "good\n", done.stderr
