"""A conformance suite for stores shared by processes; it starts real processes.

::

    class TestMyStore(ProcessSuite):
        @pytest.fixture
        def url(self):
            return "mystore://somewhere"
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import pytest

from offload.digest import digest_of
from offload.stores import Store, open_store
from offload.testing.store import HOUR, LIMIT, blobs, contents, unique

PROCESSES = 4
JOIN = 60.0  # seconds


class ProcessSuite:
    """Conformance tests of a store shared by processes; subclasses define the fixture ``url``.

    Attributes:
        rounds: how often each test repeats its calls; lower it if each call takes long.
    """

    rounds: ClassVar[int] = 8

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError("a subclass of ProcessSuite provides the fixture 'url'")

    def test_no_swap_is_lost_among_processes(self, url: str) -> None:
        """Processes that increment by compare-and-swap lose no step."""
        name = unique()
        run("fork", count_up, url, name, 3 * self.rounds)
        assert open_store(url).pointers.read(name) == b"%d" % (3 * self.rounds * PROCESSES)

    def test_one_process_has_the_lease(self, url: str) -> None:
        """Only one process at a time has the lease, and its numbers increase."""
        with tempfile.TemporaryDirectory() as folder:
            run("fork", take_turns, url, unique("lease"), folder, self.rounds)
            numbers = Path(folder, "numbers").read_text().split()
        assert len(numbers) == self.rounds * PROCESSES
        assert list(map(int, numbers)) == sorted(set(map(int, numbers)))

    def test_the_same_blobs_from_processes(self, url: str) -> None:
        """Processes that store the same blobs and others at once each read all of them intact."""
        self.put_the_same("fork", url)

    def put_the_same(self, method: str, url: str) -> None:
        shared = [os.urandom(200_000) for _ in range(10)]
        run(method, put_and_check, url, shared, self.rounds // 2)
        store = open_store(url)
        assert contents(store, [digest_of([content]) for content in shared]) == shared

    def test_an_open_store_may_be_forked(self, url: str) -> None:
        """A process that uses a store can fork; it and its children go on using the store."""
        store = open_store(url)
        mine = blobs(5, 100_000)
        store.blobs.put(mine, HOUR)
        reading = store.blobs.get(list(mine), 100_000)
        first = bytes(next(reading))
        children = start("fork", use_forked, store, mine)
        rest = list(map(bytes, reading))
        for _ in range(20):
            use_forked(store, mine)
        finish(children)
        assert [first, *rest] == [content for (content,) in mine.values()]

    def test_a_killed_writer_leaves_nothing_half_done(self, url: str) -> None:
        """When a writer is killed, each of its blobs is complete or missing."""
        store = open_store(url)
        context = multiprocessing.get_context("fork")
        found = 0
        for round_ in range(self.rounds):
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=put_until_killed, args=(url, theirs))
            child.start()
            theirs.close()
            announced = [ours.recv_bytes() for _ in range(1 + round_ % 4)]
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            while ours.poll():
                try:
                    announced.append(ours.recv_bytes())
                except EOFError:
                    break
            for seed in announced:
                content = long_content(seed)
                digest = digest_of([content])
                if not store.blobs.hold([digest], HOUR):
                    found += 1
                    assert contents(store, [digest]) == [content]
                store.blobs.put({digest: [content]}, HOUR)
                assert contents(store, [digest]) == [content]
                store.blobs.delete([digest])
        assert found


def run(method: str, target: Callable[..., None], *args: Any) -> None:
    """Run *target* in several processes; fail if it fails in one of them."""
    finish(start(method, target, *args))


def start(method: str, target: Callable[..., None], *args: Any) -> list[Any]:
    context: Any = multiprocessing.get_context(method)
    number = PROCESSES if method == "fork" else 2  # starting an interpreter takes long
    children = [context.Process(target=target, args=args) for _ in range(number)]
    for child in children:
        child.start()
    return children


def finish(children: list[Any]) -> None:
    for child in children:
        child.join(JOIN)
        if child.exitcode is None:
            child.kill()
            child.join()
    assert [child.exitcode for child in children] == [0] * len(children)


def count_up(url: str, name: str, steps: int) -> None:
    store = open_store(url)
    for _ in range(steps):
        while True:
            value = store.pointers.read(name)
            if store.pointers.swap(name, value, b"%d" % (int(value or 0) + 1)):
                break


def take_turns(url: str, name: str, folder: str, turns: int) -> None:
    store = open_store(url)
    owner = f"process {os.getpid()}"
    for _ in range(turns):
        while True:
            number = store.leases.acquire(name, owner, HOUR)
            if number is not None:
                break
        # Fails if another process has the lease, too.
        os.close(os.open(Path(folder, "inside"), os.O_CREAT | os.O_EXCL))
        with Path(folder, "numbers").open("a") as numbers:
            numbers.write(f"{number}\n")
        Path(folder, "inside").unlink()
        assert store.leases.release(name, owner)


def put_and_check(url: str, shared: list[bytes], rounds: int) -> None:
    store = open_store(url)
    common = {digest_of([content]): [content] for content in shared}
    for _ in range(rounds):
        own = blobs(10, 5000)
        store.blobs.put({**own, **common}, HOUR)
        assert store.blobs.hold([*common, *own], HOUR) == set()
        assert contents(store, common) == shared
        assert contents(store, own) == [content for (content,) in own.values()]


def use_forked(store: Store, mine: dict[Any, list[bytes]]) -> None:
    own = blobs(5, 20_000)
    store.blobs.put(own, HOUR)
    assert contents(store, own) == [content for (content,) in own.values()]
    assert contents(store, mine, LIMIT) == [content for (content,) in mine.values()]


def put_until_killed(url: str, announce: Connection) -> None:
    store = open_store(url)
    while True:
        seed = os.urandom(8)
        content = long_content(seed)
        announce.send_bytes(seed)
        store.blobs.put({digest_of([content]): [content[:1], memoryview(content)[1:]]}, HOUR)


def long_content(seed: bytes) -> bytes:
    return seed * (1 << 18)  # 2 MiB
