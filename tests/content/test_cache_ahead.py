"""Prefetching into the node cache fetches a value completely or not at all."""

from __future__ import annotations

import errno
import os
import resource
import sys
import threading
import time

import pytest

from offload import SerializerNotAccepted, ValueTooLarge
from offload.content.cache import file as cache_file
from tests.content.cache_parts import CHUNKS, FORK, LARGE, MB, SECONDS, Child, Machine, noise

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="flock, /proc and tmpfs")

FILE = LARGE + 4096


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "cache")


def warm(reader, ref):
    return reader.content.reader.prefetch(reader.content.open(ref.wire))


def prefetched(reader):
    counts = reader.counters.snapshot()
    return counts["prefetch_done"], counts["prefetch_bytes"]


def test_a_prefetched_value_is_a_hit(machine):
    """A prefetched value is fetched once, and a reader then makes no store call."""
    ref = machine.put(noise(LARGE))
    ahead, reader = machine.reader(), machine.reader()
    assert warm(ahead, ref)
    assert machine.store.take_reads() == 1 + CHUNKS
    assert machine.names() == {machine.file(ref).name}
    assert not warm(ahead, ref)
    assert (reader.get(ref) == noise(LARGE)).all()
    assert machine.store.take_reads() == 0
    assert prefetched(ahead) == (1, ref.size)
    assert ahead.counted() == {}
    assert reader.counted() == {"hits": 1}


def test_prefetching_decodes_nothing(machine):
    """Prefetching a value doesn't run its serializer's code."""
    ref = machine.put(noise(LARGE))
    reader = machine.reader()

    def decode(*_args):
        raise AssertionError

    reader.content.serializers.decode = decode
    assert warm(reader, ref)


def test_small_values_are_left_alone(machine):
    """A value that the cache doesn't keep isn't prefetched."""
    ref = machine.put(noise(MB // 2))
    assert not warm(machine.reader(), ref)
    assert machine.store.take_reads() == 0


def test_a_value_that_a_task_cannot_read_is_not_prefetched(machine):
    """A value with a refused serializer or size isn't prefetched."""
    ref = machine.put({"a": noise(LARGE)})
    with pytest.raises(SerializerNotAccepted):
        warm(machine.reader(accept=("json",)), ref)
    with pytest.raises(ValueTooLarge):
        warm(machine.reader(max_size=MB), ref)
    assert machine.store.take_reads() == 0


@pytest.mark.parametrize(("size", "reads"), ((LARGE, 0), (LARGE + 1000, 1)))
def test_without_room_nothing_is_fetched(machine, size, reads):
    """If the cache has no room for a value, its chunks aren't fetched."""
    ref = machine.put(noise(LARGE))
    reader = machine.reader(size=size)
    assert not warm(reader, ref)
    assert machine.store.take_reads() == reads
    assert machine.names() == set()
    assert prefetched(reader) == (0, 0)
    assert reader.counted() == {}


def test_a_disk_that_fills_up_meanwhile(machine, monkeypatch):
    """A failed write ends the prefetch and leaves no file."""
    ref = machine.put(noise(LARGE))
    reader = machine.reader()
    written = []

    def failing(fd, data, offset):
        written.append(offset)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(fd, data, offset)

    pwrite = os.pwrite
    monkeypatch.setattr(cache_file.os, "pwrite", failing)
    with pytest.raises(OSError, match="full"):
        warm(reader, ref)
    assert machine.names() == set()
    assert prefetched(reader) == (0, 0)


def test_a_prefetch_does_not_wait_for_another_process(machine):
    """A prefetch doesn't wait for a process that is fetching the same value."""
    ref = machine.put(noise(LARGE))
    reached, go_on = FORK.Event(), FORK.Event()

    def before(number):
        if number == 2:
            reached.set()
            assert go_on.wait(SECONDS)

    machine.store.blobs.before = before
    other = Child(lambda: len(machine.reader().get(ref)))
    assert reached.wait(SECONDS)
    machine.store.blobs.before = lambda number: None

    def never(_seconds):
        raise AssertionError

    assert not warm(machine.reader(sleep=never), ref)
    go_on.set()
    assert other.result() == LARGE


def test_a_task_waits_for_a_running_prefetch(machine):
    """A reader that comes during a prefetch takes the value from the cache."""
    ref = machine.put(noise(LARGE))
    reached, waits = threading.Event(), threading.Event()

    def before(number):
        if number == 2:
            reached.set()
            assert waits.wait(SECONDS)

    machine.store.blobs.before = before
    ahead = threading.Thread(target=warm, args=(machine.reader(), ref))
    ahead.start()
    assert reached.wait(SECONDS)

    def sleep(seconds):
        waits.set()
        time.sleep(seconds)

    reader = machine.reader(sleep=sleep)
    assert (reader.get(ref) == noise(LARGE)).all()
    ahead.join(SECONDS)
    assert reader.counted() == {"hits": 1}
    assert machine.store.take_reads() == 1 + CHUNKS


def test_room_for_prefetched_values(machine):
    """A quarter of the cache's limit is for prefetched values; nothing without a usable cache."""
    assert machine.reader(size=8 * MB).content.reader.prefetch_limit() == 2 * MB
    assert machine.reader().content.reader.prefetch_limit() == 256 * MB
    machine.path.chmod(0o755)
    assert machine.reader().content.reader.prefetch_limit() == 0
    assert machine._writer.reader.prefetch_limit() == 0


def test_prefetching_takes_no_additional_memory(machine):
    """Prefetching large values doesn't increase a main process's memory."""
    refs = [machine.put(noise(8 * LARGE, seed)) for seed in range(3)]

    def grown():
        reader = machine.reader()
        warm(reader, machine.put(noise(LARGE, 9)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for ref in refs:
            assert warm(reader, ref)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024

    assert Child(grown).result() < 4 * LARGE
