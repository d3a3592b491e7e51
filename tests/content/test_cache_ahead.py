"""Warming the node cache: what nobody asked for yet is fetched into it, or not at all."""

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


def test_what_was_warmed_is_a_hit(machine):
    """It is fetched once, and a reader then asks the store for nothing."""
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


def test_warming_decodes_nothing(machine):
    """A value is warmed without its serializer's code being run."""
    ref = machine.put(noise(LARGE))
    reader = machine.reader()

    def decode(*_args):
        raise AssertionError

    reader.content.serializers.decode = decode
    assert warm(reader, ref)


def test_small_values_are_left_alone(machine):
    """What the cache does not take is not fetched."""
    ref = machine.put(noise(MB // 2))
    assert not warm(machine.reader(), ref)
    assert machine.store.take_reads() == 0


def test_what_a_task_would_be_refused_is_not_fetched(machine):
    """Neither a serializer that is not accepted nor a value that is too large is fetched."""
    ref = machine.put({"a": noise(LARGE)})
    with pytest.raises(SerializerNotAccepted):
        warm(machine.reader(accept=("json",)), ref)
    with pytest.raises(ValueTooLarge):
        warm(machine.reader(max_size=MB), ref)
    assert machine.store.take_reads() == 0


@pytest.mark.parametrize(("size", "reads"), ((LARGE, 0), (LARGE + 1000, 1)))
def test_without_room_nothing_is_fetched(machine, size, reads):
    """Where the cache has no room for a value's file, its chunks stay where they are."""
    ref = machine.put(noise(LARGE))
    reader = machine.reader(size=size)
    assert not warm(reader, ref)
    assert machine.store.take_reads() == reads
    assert machine.names() == set()
    assert prefetched(reader) == (0, 0)
    assert reader.counted() == {}


def test_a_disk_that_fills_up_meanwhile(machine, monkeypatch):
    """A write that fails ends it, and leaves no file."""
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


def test_what_another_process_fetches_is_not_waited_for(machine):
    """Warming leaves a value to who is fetching it, at once."""
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


def test_a_task_waits_for_what_is_being_warmed(machine):
    """A reader that comes while a value is warmed takes it from the cache."""
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


def test_room_ahead(machine):
    """A quarter of what the cache may take is for what nobody asked for yet; none, where it
    is refused or there is none.
    """
    assert machine.reader(size=8 * MB).content.reader.prefetch_limit() == 2 * MB
    assert machine.reader().content.reader.prefetch_limit() == 256 * MB
    machine.path.chmod(0o755)
    assert machine.reader().content.reader.prefetch_limit() == 0
    assert machine._writer.reader.prefetch_limit() == 0


def test_warming_takes_no_memory_of_its_own(machine):
    """A main process that warms large values does not grow by them."""
    refs = [machine.put(noise(8 * LARGE, seed)) for seed in range(3)]

    def grown():
        reader = machine.reader()
        warm(reader, machine.put(noise(LARGE, 9)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for ref in refs:
            assert warm(reader, ref)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024

    assert Child(grown).result() < 4 * LARGE
