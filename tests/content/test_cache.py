"""The node cache fetches a value once per machine, keeps readers apart, and never fails a task."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from offload.content.cache import file as cache_file
from offload.content.cache import folder as cache_folder
from offload.content.cache import node as cache_module
from offload.content.cache import open_cache
from offload.content.cache.folder import Folder, available_memory, is_tmpfs, memory_limit
from offload.errors import (
    BlobMissing,
    ConfigurationError,
    IntegrityError,
    SerializerNotAccepted,
    ValueTooLarge,
)
from offload.metrics.counters import Counters
from offload.settings import Settings
from tests.content.cache_parts import CHUNKS, LARGE, MB, Child, Machine, noise

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="flock, /proc and tmpfs")

FILE = LARGE + 4096
AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "cache")


@contextmanager
def mounted(folder, options):
    """Mount a tmpfs; skip the test if that isn't permitted."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if not AS_ROOT or shutil.which("mount") is None:
        pytest.skip("only root can mount a tmpfs")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "none", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"mount: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# -- hits

VALUES = {
    "array": noise(LARGE),
    "bytes": bytes(noise(LARGE)),
    "text": "\N{SNOWMAN}" * MB,
    "frame": pd.DataFrame({"a": np.arange(MB), "b": np.arange(MB) / 2}),
    "mixed": {"x": noise(MB), "y": [noise(2 * MB, 2), "z"]},
    "compressible": np.zeros(MB),
    "one mebibyte": noise(MB),
}


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, pd.DataFrame):
        return a.equals(b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("verify", ("none", "entry", "always"))
@pytest.mark.parametrize("name", VALUES)
def test_a_second_reader_asks_the_store_for_nothing(machine, name, verify):
    """After one process has fetched a value, another reads the same without fetching a blob."""
    ref = machine.put(VALUES[name])
    first, second = machine.reader(verify=verify), machine.reader(verify=verify)
    assert same(first.get(ref), VALUES[name])
    assert machine.store.take_reads() > 1
    assert same(second.get(ref), VALUES[name])
    assert machine.store.take_reads() == 0
    assert first.counted() == {"misses": 1}
    assert second.counted() == {"hits": 1}
    assert second.counters.snapshot()["cache_bytes"] == ref.size
    assert second.counters.snapshot()["values_fetched"] == 0
    assert machine.names() == {machine.file(ref).name}


def test_small_values_are_not_kept(machine):
    """A value of a single blob costs one read and no file."""
    ref = machine.put(noise(MB - 1000))
    reader = machine.reader()
    reader.get(ref)
    reader.get(ref)
    assert machine.store.take_reads() == 2
    assert reader.counted() == {}
    assert not machine.path.exists()


def test_a_hit_outlives_the_store(machine):
    """A cached value is read even if the store lost it or is unavailable."""
    ref = machine.put(noise(LARGE))
    machine.reader().get(ref)
    opened = machine.reader().content.open(ref.wire)
    machine.store.blobs = None
    assert np.array_equal(opened.get(), noise(LARGE))


def test_a_receivers_writes_are_private(machine):
    """Each receiver can write to its value; neither other receivers nor the file see it."""
    ref = machine.put(noise(LARGE))
    readers = [machine.reader() for _ in range(3)]
    values = [reader.get(ref) for reader in readers]  # the first fetched it
    for value in values:
        value[:] = 7
    values[0][:] = 8
    assert (values[1] == 7).all()
    assert np.array_equal(machine.reader(verify="always").get(ref), noise(LARGE))
    assert machine.store.take_reads() == 1 + CHUNKS


def test_a_value_is_the_mapped_file(machine):
    """An array's memory, fetched or cached, is a private mapping of the file, not a copy."""
    ref = machine.put(noise(LARGE))
    reader = machine.reader()
    for value in (reader.get(ref), reader.get(ref)):
        address = value.__array_interface__["data"][0]
        assert address % 64 == 0
        (line,) = [
            line
            for line in Path("/proc/self/maps").read_text().splitlines()
            for start, end in [line.split()[0].split("-")]
            if int(start, 16) <= address < int(end, 16)
        ]
        assert line.split()[1] == "rw-p"
        assert str(machine.file(ref)) in line or str(machine.part(ref)) in line


def test_files_are_accessible_to_their_owner_only(machine):
    """Folder and files are accessible only to their owner, regardless of the umask."""
    before = os.umask(0)
    try:
        ref = machine.put(noise(LARGE))
        machine.reader().get(ref)
    finally:
        os.umask(before)
    assert machine.path.stat().st_mode & 0o777 == 0o700
    assert machine.file(ref).stat().st_mode & 0o777 == 0o600


# -- checks of cached values


def test_a_cached_value_is_checked_like_others(machine):
    """Serializer, size, and signature are checked even if the value is cached."""
    ref = machine.put({1, *range(400_000)})
    machine.reader().get(ref)
    with pytest.raises(SerializerNotAccepted):
        machine.reader(accept=("json",)).get(ref)
    with pytest.raises(ValueTooLarge):
        machine.reader(max_size=MB).get(ref)
    assert machine.reader().counted() == {}


@pytest.mark.parametrize("verify", ("none", "entry", "always"))
def test_chunks_from_the_store_are_always_verified(machine, verify):
    """An altered chunk from the store is refused and not cached, even if the cache verifies
    nothing.
    """
    ref = machine.put(noise(LARGE))
    machine.store.alter(list(machine.store.blobs._inner._state.blobs)[-2])
    reader = machine.reader(verify=verify)
    with pytest.raises(IntegrityError):
        reader.get(ref)
    assert machine.names() == set()


def test_a_missing_value_leaves_nothing(machine):
    """BlobMissing midway leaves neither a file nor a lock."""
    ref = machine.put(noise(LARGE))
    chunk = list(machine.store.blobs._inner._state.blobs)[1]
    machine.store.blobs.delete([chunk])
    for _ in range(2):
        with pytest.raises(BlobMissing):
            machine.reader(patience=0).get(ref)
    assert machine.names() == set()


# -- altered files


def change(offset):
    def alter(path):
        with path.open("r+b") as file:
            file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))

    return alter


def replaced(make):
    def alter(path):
        kept = path.with_name("kept")
        path.rename(kept)
        make(kept, path)

    return alter


ALTERED = {
    "magic": change(0),
    "length of the root": change(8),
    "form of the root": change(64),
    "root": change(200),
    "cut short": lambda path: os.truncate(path, LARGE),
    "cut to nothing": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, 2 * LARGE),
    "open to others": lambda path: path.chmod(0o644),
    "a link": replaced(lambda kept, path: path.symlink_to(kept)),
    "a pipe": replaced(lambda kept, path: os.mkfifo(path, 0o600)),
}
if AS_ROOT:
    ALTERED["another user's"] = lambda path: os.chown(path, 12345, 12345)


@pytest.mark.parametrize("verify", ("entry", "always"))
@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_file_is_dropped(machine, what, verify, caplog):
    """A file with unexpected content is dropped, logged, counted, and fetched again."""
    ref = machine.put(noise(LARGE))
    machine.reader().get(ref)
    ALTERED[what](machine.file(ref))
    reader = machine.reader(verify=verify)
    assert np.array_equal(reader.get(ref), noise(LARGE))
    assert reader.counted() == {"altered": 1, "misses": 1}
    assert "fetching the value from the store" in caplog.text
    assert np.array_equal(reader.get(ref), noise(LARGE))
    assert reader.counted() == {"altered": 1, "misses": 1, "hits": 1}


def test_always_notices_a_changed_body(machine):
    """With ``always``, one changed byte in the last page is noticed."""
    ref = machine.put(noise(LARGE))
    machine.reader().get(ref)
    change(-1)(machine.file(ref))
    reader = machine.reader(verify="always")
    assert np.array_equal(reader.get(ref), noise(LARGE))
    assert reader.counted() == {"altered": 1, "misses": 1}


@pytest.mark.parametrize("verify", ("none", "entry"))
def test_a_body_that_cannot_be_decoded_is_fetched_again(machine, verify):
    """A changed body that can't be decoded is fetched again; an invalid value isn't."""
    value = {"a": "x" * MB, "other": 1}
    ref = machine.put(value, "json")
    machine.reader().get(ref)
    content = machine.file(ref).read_bytes()
    machine.file(ref).write_bytes(content.replace(b'"other"', b"}}}}}}}"))
    assert machine.file(ref).read_bytes() != content
    reader = machine.reader(verify=verify)
    assert reader.get(ref) == value
    assert reader.counted() == {"altered": 1, "misses": 1, "unused": 1}
    assert machine.names() == set()


def test_a_file_from_before_a_reboot_is_fetched_again(machine, monkeypatch):
    """A file from before a reboot, which may have lost content, is fetched again silently."""
    ref = machine.put(noise(LARGE))
    machine.reader().get(ref)
    monkeypatch.setattr(cache_file, "boot", lambda: b"another boot    ")
    reader = machine.reader()
    reader.get(ref)
    assert reader.counted() == {"misses": 1}
    reader.get(ref)
    assert reader.counted() == {"misses": 1, "hits": 1}


# -- unusable folders


def a_link(path):
    (path.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")


def a_file(path):
    path.write_text("")


def open_to_others(path):
    path.mkdir()
    path.chmod(0o750)


def of_another_user(path):
    if not AS_ROOT:
        pytest.skip("only root can give folders away")
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)


def replaceable(path):
    path.parent.chmod(0o777)
    path.mkdir(mode=0o700)


def without_a_place(path):
    path.parent.rmdir()


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (a_link, "it is a link"),
        (a_file, "it is not a folder"),
        (open_to_others, "others may use it"),
        (of_another_user, "belongs to user 12345"),
        (replaceable, "no sticky bit"),
        (without_a_place, "No such file"),
    ),
)
def test_a_folder_that_is_not_safe_is_not_used(tmp_path, caplog, make, message):
    """An unsafe folder stays empty; values come from the store, and the log says why, once."""
    (tmp_path / "above").mkdir()
    machine = Machine(tmp_path / "above" / "cache")
    make(machine.path)
    ref = machine.put(noise(LARGE))
    reader = machine.reader()
    for _ in range(3):
        assert np.array_equal(reader.get(ref), noise(LARGE))
    assert reader.counted() == {"misses": 3, "unused": 3}
    assert [message in record.getMessage() for record in caplog.records] == [True]
    assert not machine.path.is_dir() or list(machine.path.iterdir()) == []


def test_the_refusal_is_typed(tmp_path):
    """`Folder.check` raises ConfigurationError with the setting and the folder."""
    (tmp_path / "cache").mkdir(mode=0o755)
    with pytest.raises(ConfigurationError, match=f"offload_cache: .*{tmp_path}.*755"):
        Folder(tmp_path / "cache", 1).check()


def test_a_read_only_folder_serves_cached_values(machine):
    """On a read-only file system, cached values are used and others come from the store."""
    machine.path.mkdir()
    with mounted(machine.path, "size=64m"):
        ref, other = machine.put(noise(LARGE)), machine.put(noise(LARGE, 2))
        machine.reader().get(ref)
        subprocess.run(["mount", "-o", "remount,ro", str(machine.path)], check=True)
        reader = machine.reader()
        assert np.array_equal(reader.get(ref), noise(LARGE))
        assert np.array_equal(reader.get(other), noise(LARGE, 2))
        assert reader.counted() == {"hits": 1, "misses": 1, "unused": 1}


# -- full disks


def test_a_value_larger_than_the_free_space_is_not_kept(machine):
    """A value larger than the free space comes from the store and uses none of it."""
    machine.path.mkdir()
    with mounted(machine.path, "size=8m"):
        ref = machine.put(noise(LARGE))
        reader = machine.reader()
        assert np.array_equal(reader.get(ref), noise(LARGE))
        assert reader.counted() == {"misses": 1, "unused": 1}
        assert machine.names() == set()


def test_reserved_space_counts_as_used(machine):
    """The rest of another running download counts as used space."""
    machine.path.mkdir()
    with mounted(machine.path, "size=24m"):
        one, other = machine.put(noise(LARGE)), machine.put(noise(LARGE, 2))
        folder = Folder(machine.path, 1024 * MB)
        part = folder.lock(one.digest)
        assert folder.reserve(part, FILE) == (True, 0)
        second = folder.lock(other.digest)
        assert folder.reserve(second, FILE) == (False, 0)
        part.close()
        assert folder.reserve(second, FILE) == (True, 0)
        second.close()


def test_a_disk_that_fills_up_meanwhile(machine, caplog):
    """If the disk fills up midway, the value is completed in memory."""
    machine.path.mkdir()
    with mounted(machine.path, "size=32m"):
        ref = machine.put(noise(LARGE))

        def fill(number):
            if number == 1:
                with pytest.raises(OSError), (machine.path / "others").open("wb", 0) as file:
                    while True:
                        file.write(bytes(MB))

        machine.store.blobs.before = fill
        reader = machine.reader()
        value = reader.get(ref)
        assert np.array_equal(value, noise(LARGE))
        value[:] = 0
        assert machine.names() == {"others"}
        assert reader.counted() == {"misses": 1, "unused": 1}
        assert os.strerror(errno.ENOSPC) in caplog.text


def test_a_limit_of_file_sizes(machine):
    """With ``ulimit -f``, values come from the store."""
    ref = machine.put(noise(LARGE))
    reader = machine.reader()

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (MB, MB))
        good = np.array_equal(reader.get(ref), noise(LARGE))
        return good, reader.counted()

    assert Child(limited).result() == (True, {"misses": 1, "unused": 1})
    assert machine.names() == set()


@pytest.mark.parametrize("number", (0, 1, 2, 1 + CHUNKS))
def test_a_write_that_fails(machine, monkeypatch, number):
    """No matter which write fails, the first, a middle, or the last one, the value is complete."""
    ref = machine.put(noise(LARGE))
    writes = []
    pwrite = os.pwrite

    def failing(fd, data, offset):
        writes.append(offset)
        if len(writes) == number + 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pwrite(fd, data[: 3 * MB], offset)

    monkeypatch.setattr(os, "pwrite", failing)
    reader = machine.reader()
    assert np.array_equal(reader.get(ref), noise(LARGE))
    assert reader.counted() == {"misses": 1, "unused": 1}
    assert machine.names() == set()


def test_a_file_that_cannot_be_renamed(machine, monkeypatch):
    """The value is complete even if its file can't be renamed."""
    ref = machine.put(noise(LARGE))

    def fails(self, part):
        raise PermissionError(errno.EPERM, "not now")

    monkeypatch.setattr(Folder, "finish", fails)
    reader = machine.reader()
    value = reader.get(ref)
    assert np.array_equal(value, noise(LARGE))
    value[:] = 0
    assert reader.counted() == {"misses": 1, "unused": 1}
    assert machine.names() == set()


# -- size limit


def used(machine, ref, ago):
    """Set the last use of *ref* to so many seconds ago."""
    at = machine.path.stat().st_mtime - ago
    os.utime(machine.file(ref), (at, at))


def test_the_least_recently_used_is_evicted(machine):
    """The least recently used value is evicted; reading counts as use, and eviction affects no
    reader.
    """
    refs = [machine.put(noise(LARGE, seed)) for seed in range(4)]
    reader = machine.reader(size=3 * FILE)
    values = [reader.get(ref) for ref in refs[:3]]
    for ref, ago in zip(refs, (300, 200, 100), strict=False):
        used(machine, ref, ago)
    reader.get(refs[0])
    reader.get(refs[3])
    assert machine.names() == {machine.file(refs[n]).name for n in (0, 2, 3)}
    assert reader.counted() == {"misses": 4, "hits": 1, "evicted": 1}
    assert np.array_equal(values[1], noise(LARGE, 1))


def test_nothing_is_evicted_for_a_value_that_does_not_fit(machine):
    """A value larger than the cache is not kept, and others stay."""
    small, large = machine.put(noise(LARGE)), machine.put(noise(3 * LARGE))
    reader = machine.reader(size=2 * FILE)
    reader.get(small)
    assert np.array_equal(reader.get(large), noise(3 * LARGE))
    assert machine.names() == {machine.file(small).name}
    assert reader.counted() == {"misses": 2, "unused": 1}


def test_nothing_is_evicted_in_vain(machine):
    """A file that another process is filling isn't evicted, nor are others evicted in vain."""
    refs = [machine.put(noise(LARGE, seed)) for seed in range(3)]
    reader = machine.reader(size=2 * FILE - 1)
    machine.path.mkdir(0o700)
    part = reader.folder.lock(refs[0].digest)
    assert reader.folder.reserve(part, FILE) == (True, 0)
    reader.get(refs[1])
    assert machine.names() == {machine.part(refs[0]).name}
    assert reader.counted() == {"misses": 1, "unused": 1}
    part.close()
    reader.get(refs[1])
    assert machine.names() == {machine.file(refs[1]).name}


def test_unused_files_are_removed(machine):
    """A file unused for longer than the limit is removed, even if there is room."""
    old, new = machine.put(noise(LARGE)), machine.put(noise(LARGE, 2))
    reader = machine.reader(unused=1000.0)
    reader.get(old)
    used(machine, old, 1010)
    reader.get(new)
    assert machine.names() == {machine.file(new).name}


def test_foreign_files_stay(machine):
    """Files that aren't values are neither counted nor removed."""
    machine.path.mkdir(mode=0o700)
    (machine.path / "notes.txt").write_bytes(bytes(MB))
    ref = machine.put(noise(LARGE))
    machine.reader(size=FILE).get(ref)
    assert machine.names() == {"notes.txt", machine.file(ref).name}


def test_the_folder_may_be_removed_at_any_time(machine):
    """After ``rm -r``, values are fetched and cached again; mapped ones stay valid."""
    ref = machine.put(noise(LARGE))
    reader = machine.reader()
    value = reader.get(ref)
    shutil.rmtree(machine.path)
    assert np.array_equal(reader.get(ref), noise(LARGE))
    assert np.array_equal(value, noise(LARGE))
    assert machine.names() == {machine.file(ref).name}


def test_the_cache_uses_at_most_half_of_a_shared_file_system(machine, monkeypatch):
    """In /dev/shm the cache uses at most half of it or a quarter of the container's memory."""
    machine.path.mkdir()
    with mounted(machine.path, "size=64m"):
        monkeypatch.setattr(cache_folder, "memory_limit", lambda: None)
        assert Folder(machine.path, 1024 * MB, shared=True).limit() == 32 * MB
        assert Folder(machine.path, 1024 * MB).limit() == 1024 * MB
        assert Folder(machine.path, 5 * MB, shared=True).limit() == 5 * MB
        monkeypatch.setattr(cache_folder, "memory_limit", lambda: 100 * MB)
        assert Folder(machine.path, 1024 * MB, shared=True).limit() == 25 * MB
        assert is_tmpfs(machine.path)


def test_nothing_is_kept_when_memory_is_short(machine, monkeypatch):
    """In /dev/shm, a value larger than half of the free memory is not kept."""
    ref = machine.put(noise(LARGE))
    monkeypatch.setattr(cache_folder, "available_memory", lambda: 2 * LARGE)
    short = machine.reader(shared=True)
    assert np.array_equal(short.get(ref), noise(LARGE))
    assert short.counted() == {"misses": 1, "unused": 1}
    monkeypatch.setattr(cache_folder, "available_memory", lambda: 2 * FILE)
    machine.reader(shared=True).get(ref)
    assert machine.names() == {machine.file(ref).name}


def test_memory_limits_and_file_systems_are_detected():
    """A memory limit is a number or unknown, and a file system in /proc is no tmpfs."""
    assert memory_limit() is None or memory_limit() > MB
    assert available_memory() > MB
    assert not is_tmpfs(Path("/proc/self"))
    assert not is_tmpfs(Path("/no such folder"))


# -- waiting


class Time:
    """A clock that only waiting advances."""

    def __init__(self, during=lambda: None):
        self.now = 0.0
        self.during = during

    def sleep(self, seconds):
        self.now += seconds
        self.during()

    def clock(self):
        return self.now


def test_a_hung_download_is_not_waited_for(machine, caplog):
    """When another process's download has stalled for the patience, the value is fetched without
    the cache.
    """
    ref = machine.put(noise(LARGE))
    machine.path.mkdir(0o700)
    part = Folder(machine.path, LARGE).lock(ref.digest)
    time = Time()
    reader = machine.reader(patience=5, sleep=time.sleep, clock=time.clock)
    assert np.array_equal(reader.get(ref), noise(LARGE))
    assert 5 <= time.now < 5.1
    assert reader.counted() == {"misses": 1, "unused": 1}
    assert "has held" in caplog.text
    part.close()


def test_a_slow_download_is_waited_for(machine):
    """While another process's download progresses, a reader waits for longer than its patience."""
    ref = machine.put(noise(LARGE))
    machine.path.mkdir(0o700)
    part = Folder(machine.path, LARGE).lock(ref.digest)

    def write():
        if time.now > 20:
            part.close()
        elif int(time.now) > os.fstat(part.fd).st_size:
            os.ftruncate(part.fd, int(time.now))
            os.utime(part.fd, (int(time.now), int(time.now)))

    time = Time(write)
    reader = machine.reader(patience=5, sleep=time.sleep, clock=time.clock)
    reader.get(ref)
    assert 20 < time.now < 21
    assert reader.counted() == {"misses": 1}


def test_a_repeatedly_failing_download_is_not_waited_for(machine):
    """A download that another process starts again and again counts as no progress."""
    ref = machine.put(noise(LARGE))
    machine.path.mkdir(0o700)
    folder = Folder(machine.path, LARGE)
    parts = [folder.lock(ref.digest)]

    def again():
        if int(time.now * 2) >= len(parts):
            machine.part(ref).rename(machine.path / f"old {len(parts)}")
            parts.append(folder.lock(ref.digest))

    time = Time(again)
    reader = machine.reader(patience=5, sleep=time.sleep, clock=time.clock)
    reader.get(ref)
    assert 5 <= time.now < 5.1
    for part in parts:
        part.close()


def test_a_hung_holder_of_the_folders_lock(machine, monkeypatch, caplog):
    """A process that hangs while it evicts values doesn't block readers."""
    monkeypatch.setattr(cache_folder, "_LOCK_WAIT", 0.01)
    ref = machine.put(noise(LARGE))
    reader = machine.reader()
    reader.folder.check()
    with reader.folder._locked():
        assert np.array_equal(machine.reader().get(ref), noise(LARGE))
    assert "lock" in caplog.text
    assert machine.names() == set()


def test_a_value_that_does_not_fit_is_not_waited_for(machine):
    """If a value doesn't fit, every process fetches it at once without waiting for others."""
    ref = machine.put(noise(LARGE))
    machine.path.mkdir(0o700)
    folder = Folder(machine.path, LARGE)
    part = folder.lock(ref.digest)
    time = Time()
    machine.reader(size=LARGE - 1, sleep=time.sleep, clock=time.clock).get(ref)
    assert time.now == 0.0
    part.close()

    def another(number):
        folder.lock(ref.digest).close()

    machine.store.blobs.before = lambda number: number == 1 and another(number)
    reader = machine.reader(size=LARGE + 1000)  # too large because of its header
    reader.get(ref)
    assert reader.counted() == {"misses": 1, "unused": 1}


def test_files_are_renamed_under_the_folders_lock(machine, monkeypatch):
    """A complete file is renamed under the folder's lock, so that eviction counts it once."""
    monkeypatch.setattr(cache_folder, "_LOCK_WAIT", 0.01)
    ref = machine.put(noise(LARGE))
    reader = machine.reader()
    with ExitStack() as stack:

        def hold(number):
            if number == 1:
                stack.enter_context(machine.reader().folder._locked())

        machine.store.blobs.before = hold
        assert np.array_equal(reader.get(ref), noise(LARGE))
        assert machine.names() == set()
    assert reader.counted() == {"misses": 1, "unused": 1}


def test_a_part_renamed_meanwhile_is_left_alone(machine, monkeypatch):
    """A process that locks a part after it was completed and renamed leaves it alone."""
    ref = machine.put(noise(LARGE))
    machine.reader().get(ref)
    machine.file(ref).rename(machine.part(ref))
    flock = fcntl.flock

    def finished(fd, operation):
        if machine.part(ref).exists():
            machine.part(ref).rename(machine.file(ref))
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", finished)
    assert Folder(machine.path, LARGE).lock(ref.digest) is None
    monkeypatch.undo()
    reader = machine.reader(verify="always")
    reader.get(ref)
    assert reader.counted() == {"hits": 1}


def test_leftovers_are_removed(machine):
    """Files of killed processes are removed when another value needs room; locked ones stay."""
    left, held, ref = (machine.put(noise(LARGE, seed)) for seed in range(3))
    machine.path.mkdir(0o700)
    machine.part(left).write_bytes(b"half of it")
    folder = Folder(machine.path, 10 * LARGE)
    part = folder.lock(held.digest)
    machine.reader().get(ref)
    assert machine.names() == {machine.part(held).name, machine.file(ref).name}
    part.close()


def test_a_new_empty_part_is_left_alone(machine):
    """A part that its process created, but hasn't locked yet, is neither locked nor removed by
    others; if it stays empty for a minute, it is a leftover.
    """
    new, first, second = (machine.put(noise(LARGE, seed)) for seed in range(3))
    machine.path.mkdir(0o700)
    part = machine.part(new)
    part.touch(0o600)
    machine.reader().get(first)
    assert part.exists()
    long_ago = time.time() - cache_folder._EMPTY - 1
    os.utime(part, (long_ago, long_ago))
    machine.reader().get(second)
    assert not part.exists()


def test_a_leftover_of_the_same_value_is_filled_again(machine):
    """A leftover file of the same value is filled again, regardless of its content."""
    ref = machine.put(noise(LARGE))
    machine.path.mkdir(0o700)
    machine.part(ref).write_bytes(b"x" * 3 * LARGE)
    machine.part(ref).chmod(0o600)
    reader = machine.reader(verify="always")
    assert np.array_equal(reader.get(ref), noise(LARGE))
    assert np.array_equal(reader.get(ref), noise(LARGE))
    assert reader.counted() == {"misses": 1, "hits": 1}


# -- settings


@pytest.mark.parametrize(
    "wrong",
    (
        {"cache": "relative/folder"},
        {"cache": ""},
        {"cache": True},
        {"cache_size": -1},
        {"cache_size": 1.5},
        {"verify": "sometimes"},
        {"verify": False},
    ),
)
def test_wrong_settings_are_refused(wrong):
    """Each wrong setting raises an error that names its key."""
    with pytest.raises(ConfigurationError, match=f"offload_{next(iter(wrong))}: "):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("url", "settings"),
    (
        ("memory://", {}),
        ("file:///var/blobs", {}),
        ("memory://a + file:///var/blobs", {}),
        ("redis://host", {"cache": "off"}),
        ("redis://host", {"cache_size": 0}),
    ),
)
def test_where_there_is_no_cache(url, settings):
    """Local stores have no cache, and two settings disable it."""
    assert open_cache(url, Settings(**settings), Counters()) is None


def test_where_the_cache_is(tmp_path, monkeypatch):
    """The cache is in the configured folder, or else in the user's folder on a tmpfs, if any."""
    counters = Counters()
    named = open_cache("redis://host", Settings(cache=tmp_path, cache_size=5), counters)
    assert (named.folder.path, named.folder.limit()) == (tmp_path, 5)
    monkeypatch.setattr(cache_module, "_SHM", tmp_path)
    assert open_cache("s3://bucket", Settings(), counters) is None
    monkeypatch.setattr(cache_module, "_SHM", tmp_path / "missing")
    assert open_cache("s3://bucket", Settings(), counters) is None
    monkeypatch.setattr(cache_module, "_SHM", tmp_path)
    monkeypatch.setattr(cache_folder, "is_tmpfs", lambda path: path == tmp_path)
    assert open_cache("memory:// + s3://bucket", Settings(), counters) is not None
    own = open_cache("s3://bucket", Settings(), counters)
    assert own.folder.path == tmp_path / f"offload-{os.geteuid()}"
    assert not own.folder.path.exists()


@pytest.fixture(autouse=True)
def _warnings(caplog):
    caplog.set_level(logging.WARNING, "offload")


def test_values_hold_no_descriptors(machine):
    """Values from the cache hold no descriptors, and are unmapped when they are collected."""
    value = noise(LARGE)
    reader = machine.reader()
    refs = [machine.put(value + number) for number in range(40)]
    before = descriptors()
    for _ in range(2):  # put together in the cache, then found there
        values = [reader.get(ref) for ref in refs]
        assert descriptors() == before
        assert len(mapped(machine.path)) == 40
        values[0][:] = 0  # private
        for number, got in enumerate(values[1:], 1):
            assert (got == value + number).all()
        del values, got
        assert mapped(machine.path) == []
    assert (reader.get(refs[0]) == value).all()


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def mapped(folder):
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(folder) in line]
