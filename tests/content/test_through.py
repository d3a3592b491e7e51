"""A process that stores a value puts it into its machine's node cache, if a worker reads there."""

from __future__ import annotations

import base64
import errno
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from offload.content import through
from offload.content.cache.folder import Folder
from offload.content.holds import Hold
from offload.errors import StoreUnavailable
from offload.settings import RetryPolicy
from tests.content.cache_parts import CHUNKS, FORK, HOUR, LARGE, MB, SECONDS, Child, Machine, noise
from tests.content.test_cache import AS_ROOT, mounted
from tests.support.processes import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="flock, /proc and tmpfs")

VALUES = {
    "array": noise(LARGE),
    "bytes": bytes(noise(LARGE)),
    "text": "\N{SNOWMAN}" * MB,
    "frame": pd.DataFrame({"a": np.arange(MB), "b": np.arange(MB) / 2}),
    "fragments": [noise(300, seed) for seed in range(5000)],
    "compressible": np.zeros(MB),
    "one mebibyte": noise(MB),
}


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "cache")


def put(reader, value):
    return reader.content.writer.put(value, celery_serializer="pickle", hold=Hold(HOUR))


def same(a, b):
    if isinstance(a, pd.DataFrame):
        return a.equals(b)
    if isinstance(a, list):
        return all(map(same, a, b))
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else a == b


def written(reader):
    """Return how many values *reader* wrote through, and how many it couldn't."""
    counts = reader.counted()
    return counts.get("written", 0), counts.get("unwritten", 0)


def files(machine):
    """Return the names of cached and partial files."""
    return {name for name in machine.names() if name.startswith("b3-")}


@pytest.mark.parametrize("name", VALUES)
def test_the_first_reader_asks_the_store_for_nothing(machine, name):
    """With a worker on the machine, the first reader of a new value reads no byte of the store."""
    publisher, worker = machine.reader(), machine.reader()
    worker.cache.occupy()
    ref = put(publisher, VALUES[name])
    assert written(publisher) == (1, 0)
    assert publisher.counted()["written_bytes"] == ref.size
    assert same(worker.get(ref), VALUES[name])
    assert machine.store.take_reads() == 0
    assert worker.counted() == {"hits": 1}


@pytest.mark.parametrize("name", VALUES)
def test_the_file_is_the_one_that_a_reader_assembles(machine, tmp_path, name):
    """The file has the bytes that a reader without write-through would have written."""
    ref = put(machine.reader(cache_write="on"), VALUES[name])
    other = Machine(tmp_path / "other")
    other.store = machine.store
    other.reader().get(ref)
    assert machine.file(ref).read_bytes() == other.file(ref).read_bytes()
    assert machine.file(ref).stat().st_mode & 0o777 == 0o600


def test_with_encryption_readers_ask_the_store_for_nothing(machine):
    """With encrypted blobs, the file is what a reader expects: plain, under the keyed name."""
    keys = ["aes256:" + base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2)]
    publisher = machine.reader(cache_write="on", encryption_keys=keys[:1])
    ref = put(publisher, noise(LARGE))
    reader = machine.reader(encryption_keys=keys, verify="always")
    assert same(reader.get(ref), noise(LARGE))
    assert machine.store.take_reads() == 0
    assert reader.counted() == {"hits": 1}


def test_nothing_is_written_without_a_worker(machine):
    """A publisher on a machine without a worker doesn't even create the folder."""
    publisher = machine.reader()
    put(publisher, noise(LARGE))
    assert not machine.path.exists()
    assert publisher.counted() == {}


def test_a_mark_ends_with_its_process(machine):
    """Values are written while a worker's process lives, and no longer after it was killed."""
    publisher = machine.reader()
    ready = FORK.Event()

    def work():
        machine.reader().cache.occupy()
        ready.set()
        threading.Event().wait(SECONDS)

    worker = Child(work)
    assert ready.wait(SECONDS)
    assert publisher.folder.is_used()
    worker.kill()
    assert not publisher.folder.is_used()
    put(publisher, noise(LARGE))
    assert files(machine) == set()


def test_a_forked_child_does_not_keep_its_parents_mark(machine):
    """A mark ends with the process that made it, whichever children it has forked."""
    worker = machine.reader()
    worker.cache.occupy()
    ready, stop = FORK.Event(), FORK.Event()
    child = Child(lambda: ready.set() or stop.wait(SECONDS))
    assert ready.wait(SECONDS)
    worker.cache.vacate()
    assert not machine.reader().folder.is_used()
    stop.set()
    assert child.result()


def test_any_one_of_several_workers_counts(machine):
    """The folder is used while any of several workers lives."""
    workers = [machine.reader() for _ in range(3)]
    for worker in workers:
        worker.cache.occupy()
        worker.cache.occupy()
    asking = machine.reader().folder
    for worker in workers:
        assert asking.is_used()
        worker.cache.vacate()
    assert not asking.is_used()
    assert machine.names() == {"worker-0", "worker-1", "worker-2"}


def test_a_worker_that_starts_while_a_publisher_asks(machine, monkeypatch):
    """A publisher that asks at this very moment neither delays a worker nor hides it."""
    import fcntl

    first = machine.reader()
    first.cache.occupy()
    first.cache.vacate()
    with (machine.path / "worker-0").open("rb") as asked:
        fcntl.flock(asked, fcntl.LOCK_SH)
        assert not machine.reader().folder.is_used()
        second = machine.reader()
        second.cache.occupy()
        assert machine.reader().folder.is_used()


def test_a_mark_is_made_again_in_a_removed_folder(machine):
    """After the folder was removed, a worker marks it again when it next uses the cache."""
    worker, publisher = machine.reader(), machine.reader()
    worker.cache.occupy()
    for path in machine.path.iterdir():
        path.unlink()
    machine.path.rmdir()
    assert not publisher.folder.is_used()
    worker.get(machine.put(noise(LARGE)))
    assert publisher.folder.is_used()


def test_the_setting_decides(machine):
    """``on`` writes without a worker, ``off`` never."""
    refused, writer = machine.reader(cache_write="off"), machine.reader(cache_write="on")
    put(writer, noise(LARGE))
    assert written(writer) == (1, 0)
    machine.reader().cache.occupy()
    put(refused, noise(LARGE, 2))
    assert refused.counted() == {}
    assert len(files(machine)) == 1


def test_small_values_are_not_written(machine):
    """Values of less than 1 MiB aren't written."""
    publisher = machine.reader(cache_write="on")
    put(publisher, noise(MB - 4096))
    assert publisher.counted() == {}
    assert not machine.path.exists()


def test_a_value_that_the_store_has_is_written(machine):
    """A value that the store has, in whole or in part, is written if it isn't cached."""
    publisher, worker = machine.reader(cache_write="on"), machine.reader()
    machine.put(noise(LARGE))
    longer = np.concatenate([noise(LARGE), noise(MB, 3)])
    refs = [put(publisher, value) for value in (noise(LARGE), longer)]
    assert written(publisher) == (2, 0)
    assert same(worker.get(refs[0]), noise(LARGE))
    assert same(worker.get(refs[1]), longer)
    assert machine.store.take_reads() == 0


def test_a_value_that_is_cached_already_is_not_written_again(machine):
    """A cached value isn't written again; storing it counts as a use of its file."""
    publisher = machine.reader(cache_write="on")
    ref = put(publisher, noise(LARGE))
    os.utime(machine.file(ref), (1, 1))
    inode = machine.file(ref).stat().st_ino
    put(publisher, noise(LARGE))
    machine.store.blobs.delete(publisher.content.holds.digests(ref))
    put(publisher, noise(LARGE))
    assert written(publisher) == (1, 0)
    assert machine.file(ref).stat().st_ino == inode
    assert machine.file(ref).stat().st_mtime > 1


def test_many_values_are_written_together(machine):
    """`put_all` writes through each value that wasn't stored."""
    publisher = machine.reader(cache_write="on")
    writer = publisher.content.writer
    values = [noise(LARGE, seed) for seed in (1, 2, 1)]
    payloads = [writer.serialize(value, "pickle") for value in values]
    stored = writer.put_all(payloads, hold=Hold(HOUR))
    assert written(publisher) == (2, 0)
    assert files(machine) == {machine.file(ref).name for ref, _ in stored}


# -- several at once


def test_threads_that_store_the_same_value_write_it_once(machine, monkeypatch):
    """Of many threads that store the same new value at once, one writes it."""
    publisher = machine.reader(cache_write="on")
    many = 4
    bodies = []
    pwrite = os.pwrite

    def counted(fd, data, offset):
        if offset == 4096:
            bodies.append(len(data))
        return pwrite(fd, data, offset)

    ready = threading.Barrier(many)
    hold = machine.store.blobs._inner.hold

    def together(digests, ttl, holder):
        missing = hold(digests, ttl, holder)
        ready.wait(SECONDS)
        return missing

    monkeypatch.setattr(os, "pwrite", counted)
    monkeypatch.setattr(machine.store.blobs._inner, "hold", together)
    threads = [threading.Thread(target=put, args=(publisher, noise(LARGE))) for _ in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(bodies) == 1
    assert written(publisher) == (1, 0)
    assert len(files(machine)) == 1


def hang_at(offset, monkeypatch, then):
    """Call *then* when something is written at *offset* of a file."""
    pwrite = os.pwrite

    def hung(fd, data, at):
        if at == offset:
            then()
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", hung)


def test_a_killed_process_leaves_no_readable_file(machine, monkeypatch):
    """After SIGKILL during write-through, readers ignore the partial file, and replace it."""
    reached = FORK.Event()

    def stop():
        reached.set()
        threading.Event().wait(SECONDS)

    hang_at(4096 + 2 * LARGE // CHUNKS, monkeypatch, stop)
    killed = Child(lambda: put(machine.reader(cache_write="on"), noise(LARGE)))
    assert reached.wait(SECONDS)
    killed.kill()
    monkeypatch.undo()
    [left] = files(machine)
    assert left.endswith(".part")
    reader = machine.reader()
    ref = machine.put(noise(LARGE))
    assert np.array_equal(reader.get(ref), noise(LARGE))
    assert reader.counted() == {"misses": 1}
    assert files(machine) == {machine.file(ref).name}


def test_a_process_forked_meanwhile(machine, monkeypatch):
    """A child forked during write-through stores values of its own; the parent's is completed."""
    publisher = machine.reader(cache_write="on")
    found = []

    def fork():
        child = Child(lambda: written(put_another()))
        found.append(child.result())

    def put_another():
        monkeypatch.undo()
        another = machine.reader(cache_write="on")
        put(another, noise(LARGE, 2))
        return another

    hang_at(4096 + LARGE // CHUNKS, monkeypatch, fork)
    ref = put(publisher, noise(LARGE))
    assert found == [(1, 0)]
    assert written(publisher) == (1, 0)
    assert machine.file(ref).name in files(machine)
    assert len(files(machine)) == 2


# -- when it can't be written


def publishes(machine, publisher, value):
    """Return whether *value* was stored, read back from the store alone."""
    ref = put(publisher, value)
    return same(machine.reader(path=machine.path.with_name("elsewhere")).get(ref), value)


def test_a_full_tmpfs(machine):
    """If the tmpfs has no room, or fills up meanwhile, the value is published all the same."""
    machine.path.mkdir()
    with mounted(machine.path, "size=8m"):
        publisher = machine.reader(cache_write="on")
        assert publishes(machine, publisher, noise(LARGE))
        assert written(publisher) == (0, 1)
        assert files(machine) == set()


@pytest.mark.parametrize("number", range(2 + CHUNKS))
def test_a_write_that_fails(machine, monkeypatch, number):
    """Whichever write fails, the value is published, and no file is left."""
    pwrite, writes = os.pwrite, []

    def failing(fd, data, offset):
        writes.append(offset)
        if len(writes) == number + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data[: 3 * MB], offset)

    monkeypatch.setattr(os, "pwrite", failing)
    publisher = machine.reader(cache_write="on")
    ref = put(publisher, noise(LARGE))
    assert written(publisher) == (0, 1)
    assert files(machine) == set()
    monkeypatch.undo()
    assert np.array_equal(machine.reader().get(ref), noise(LARGE))


def test_short_writes_are_continued(machine, monkeypatch):
    """Writes that the system cuts short are continued where they stopped."""
    value = VALUES["fragments"]
    pwritev = os.pwritev

    def short(fd, parts, offset):
        cut = [parts[0], parts[1][:7]] if len(parts[1]) > 7 else parts[:1]
        return pwritev(fd, cut, offset)

    monkeypatch.setattr(os, "pwritev", short)
    publisher = machine.reader(cache_write="on")
    ref = put(publisher, value)
    assert same(publisher.get(ref), value)
    assert publisher.counted()["hits"] == 1


def test_the_cache_stays_within_its_size(machine):
    """Values are evicted for those written through as for those read; none larger is written."""
    publisher = machine.reader(cache_write="on", size=2 * LARGE)
    refs = [put(publisher, noise(LARGE, seed)) for seed in range(3)]
    put(publisher, noise(3 * LARGE))
    counts = publisher.counted()
    counts.pop("written_bytes")
    assert counts == {"written": 3, "evicted": 2, "unwritten": 1}
    assert files(machine) == {machine.file(refs[-1]).name}


@pytest.mark.parametrize("mode", ("auto", "on"))
@pytest.mark.parametrize("why", ("shared", "link", "other user", "file"))
def test_a_refused_folder(machine, tmp_path, mode, why):
    """In a folder that others may read or own, nothing is written; the value is published."""
    path = machine.path
    if why == "link":
        (tmp_path / "target").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "target")
    elif why == "file":
        path.write_bytes(b"")
    else:
        path.mkdir(mode=0o777 if why == "shared" else 0o700)
    if why == "shared":
        path.chmod(0o777)
    if why == "other user":
        if not AS_ROOT:
            pytest.skip("only root can give a folder away")
        (path / "worker-0").write_bytes(b"")
        os.chown(path, 12345, 12345)
    publisher = machine.reader(cache_write=mode)
    assert publishes(machine, publisher, noise(LARGE))
    assert written(publisher) == (0, 1)
    assert why == "file" or {each.name for each in path.iterdir()} <= {"worker-0"}


def test_a_value_that_is_not_stored_leaves_nothing(machine, monkeypatch):
    """If storing fails meanwhile, writing ends, too: no file, no thread; the error is raised."""
    publisher = machine.reader(cache_write="on", retry=RetryPolicy(max_retries=0))
    reached, writes = threading.Event(), []
    start = through._Write.start

    def stop():
        reached.set()
        wait_until(lambda: writes[0].is_stopped, "the write is stopped", SECONDS)

    def fails(*_args, **_options):
        assert reached.wait(SECONDS)
        raise StoreUnavailable("gone", store="memory://")

    hang_at(4096, monkeypatch, stop)
    monkeypatch.setattr(through._Write, "start", lambda self: writes.append(self) or start(self))
    monkeypatch.setattr(machine.store.blobs._inner, "put", fails)
    with pytest.raises(StoreUnavailable):
        put(publisher, noise(LARGE))
    assert files(machine) == set()
    assert "offload-through" not in {thread.name for thread in threading.enumerate()}
    assert written(publisher) == (0, 0)


def test_without_threads_values_are_written_in_place(machine, monkeypatch):
    """If no thread can start, the value is written before it is stored."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    publisher = machine.reader(cache_write="on")
    put(publisher, noise(LARGE))
    assert written(publisher) == (1, 0)


def test_asking_takes_no_exclusive_lock(tmp_path):
    """A publisher that may only read the folder still learns whether it is used."""
    folder, worker = (Folder(Path(tmp_path / "cache"), LARGE) for _ in range(2))
    worker.occupy()
    (tmp_path / "cache" / "worker-0").chmod(0o400)
    assert folder.is_used()
