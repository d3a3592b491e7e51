"""Properties of file stores, checked in their folders."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from offload.errors import BlobMissing, ConfigurationError, StoreError, StoreUnavailable
from offload.stores import open_store
from offload.stores.file import FileStore
from offload.testing.store import HOUR, FakeClock, blob, blobs, contents, swept


@pytest.fixture
def clock():
    return FakeClock(time.time())


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "below" / "store"


@pytest.fixture
def store(folder, clock):
    return FileStore(folder, clock=clock, skew=60)


def path_of(folder, digest):
    return folder / "blobs" / digest[3:5] / digest.replace(":", "-")


def files(folder):
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and "locks" not in path.parts
    )


def test_a_blob_is_one_private_file(store, folder, clock):
    """A blob is a file with its content that only its owner may read; its mtime is its expiry."""
    digest, content = blob()
    store.blobs.put({digest: [b"\0", content]}, 100)
    assert files(folder) == [path_of(folder, digest)]
    found = path_of(folder, digest)
    assert found.read_bytes() == b"\0" + content
    assert stat.S_IMODE(found.stat().st_mode) == 0o600
    assert abs(found.stat().st_mtime - (clock.now + 160)) < 0.01
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700


def test_opening_writes_nothing(folder):
    """Opening and reading a store writes nothing."""
    store = open_store(f"file://{folder}")
    digest, _ = blob()
    assert store.blobs.hold([digest], 1) == {digest}
    assert list(store.blobs.scan()) == []
    assert store.pointers.read("p") is None
    assert list(store.pointers.names()) == []
    with pytest.raises(BlobMissing):
        contents(store, [digest])
    assert not folder.exists()


def test_a_host_with_a_fast_clock_finds_live_blobs(store, folder, clock):
    """Within the tolerated skew, a host with a fast clock still finds live blobs."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, 10)
    clock.advance(10)
    ahead = FileStore(folder, clock=lambda: clock.now + 59)
    assert contents(ahead, [digest]) == [content]
    assert swept(ahead) == 0


@pytest.mark.parametrize("code", (errno.ENOSPC, errno.EDQUOT, errno.EIO))
@pytest.mark.parametrize("call", ("fsync", "replace"))
def test_a_full_disk_is_unavailable(store, folder, monkeypatch, code, call):
    """A full or failing disk raises StoreUnavailable, and partial files are removed."""

    def full(*args):
        raise OSError(code, os.strerror(code), str(args[0]))

    digest, content = blob()
    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(Path, "replace", full)
        with pytest.raises(StoreUnavailable) as caught:
            store.blobs.put({digest: [content]}, HOUR)
        assert caught.value.store == store.url
        with pytest.raises(StoreUnavailable):
            store.pointers.swap("p", None, content)
        with pytest.raises(StoreUnavailable):
            store.leases.acquire("l", "me", HOUR)
    assert files(folder) == []
    assert store.blobs.hold([digest], HOUR) == {digest}
    assert store.pointers.read("p") is None


def test_a_really_full_disk_is_unavailable(tmp_path):
    """A file system that is really full raises StoreUnavailable (where one can be mounted)."""
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=1m none {small} 2>/dev/null"):
        pytest.skip("mounting needs to be root")
    try:
        store = FileStore(small)
        kept, kept_content = blob(100_000)
        store.blobs.put({kept: [kept_content]}, HOUR)
        big, content = blob(2 << 20)
        with pytest.raises(StoreUnavailable, match="full"):
            store.blobs.put({big: [content]}, HOUR)
        assert [path for path in files(small) if "tmp" in path.relative_to(small).parts] == []
        assert store.blobs.hold([kept, big], HOUR) == {big}
        other, content = blob(300_000)
        store.blobs.put({other: [content]}, HOUR)
        assert contents(store, [kept, other]) == [kept_content, content]
    finally:
        assert not os.system(f"umount {small}")


def test_missing_permissions_are_a_final_error(store, folder, monkeypatch):
    """A folder without the needed permissions raises a StoreError that says what to check."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)

    def denied(*args, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(args[0]))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        patch.setattr(Path, "open", denied)
        for call in (
            lambda: store.blobs.put(blobs(1), HOUR),
            lambda: contents(store, [digest]),
            lambda: store.pointers.swap("p", None, b""),
            lambda: store.leases.acquire("l", "me", 1),
        ):
            with pytest.raises(StoreError, match="its owner, and its permissions") as caught:
                call()
            assert not isinstance(caught.value, StoreUnavailable)


def test_a_file_in_place_of_the_folder_is_a_final_error(tmp_path):
    """A path that is no folder raises a StoreError."""
    (tmp_path / "file").write_text("")
    for path in ("file", "file/below"):
        with pytest.raises(StoreError, match="check the path"):
            FileStore(tmp_path / path).blobs.put(blobs(1), HOUR)


def test_partial_files_are_removed_by_age(store, folder, clock):
    """A partial file that is a day old is removed; a recent one stays."""
    store.blobs.put(blobs(1), 10)
    for name, age in (("old", 90_000), ("new", 60)):
        left = folder / "tmp" / name
        left.write_bytes(b"half")
        os.utime(left, (clock.now - age, clock.now - age))
    swept(store)
    assert [path.name for path in (folder / "tmp").iterdir()] == ["new"]


def test_expired_blobs_are_removed(store, folder, clock):
    """The sweep removes what expired, and nothing else."""
    kept, ending = blobs(20), blobs(30)
    store.blobs.put(kept, HOUR)
    store.blobs.put(ending, 10)
    store.pointers.swap("p", None, b"1")
    store.leases.acquire("l", "me", 10)
    clock.advance(71)
    assert swept(store) == 30
    assert swept(store) == 0
    assert all(path_of(folder, digest).exists() for digest in kept)
    assert store.pointers.read("p") == b"1"
    clock.advance(2 * 86400)
    assert swept(store) == 21  # the others, and the lease
    assert not list((folder / "leases").rglob("*/*"))


def test_storing_removes_expired_blobs(store, folder, clock):
    """Storing a blob also removes some expired ones, without a sweep."""
    store.blobs.put(blobs(50), 10)
    clock.advance(71)
    for _ in range(256):
        clock.advance(1)
        store.blobs.put(blobs(1), 2)
    left = [path for path in files(folder) if path.stat().st_mtime <= clock.now - 257]
    assert left == []


def test_the_sweep_keeps_a_blob_that_is_stored_again(store, folder, clock, monkeypatch):
    """A blob that is stored again between the sweep's check and its deletion stays."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, 10)
    clock.advance(71)
    lock = store.disk.lock

    def stored_meanwhile(stripe):
        monkeypatch.undo()
        store.blobs.put({digest: [content]}, HOUR)
        return lock(stripe)

    monkeypatch.setattr(store.disk, "lock", stored_meanwhile)
    store.blobs._sweep(digest[3:5])
    assert contents(store, [digest]) == [content]


def test_a_hold_never_revives_a_swept_blob(store, folder, clock, monkeypatch):
    """If the sweep deletes a blob during a hold, the hold reports it as missing."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, 10)
    clock.advance(60)
    lock = store.disk.lock

    def swept_meanwhile(stripe):
        monkeypatch.undo()
        clock.advance(11)
        assert swept(store) == 1
        return lock(stripe)

    monkeypatch.setattr(store.disk, "lock", swept_meanwhile)
    assert store.blobs.hold([digest], HOUR) == {digest}


def test_the_longest_of_racing_lifetimes_wins(folder):
    """Of racing puts and holds with different lifetimes, the longest wins."""
    digest, content = blob()
    for _ in range(30):
        store = FileStore(folder, skew=0, fsync=False)
        store.blobs.delete([digest])
        start = threading.Barrier(4)

        def race(ttl, store=store, start=start):
            start.wait()
            store.blobs.put({digest: [content]}, ttl)
            store.blobs.hold([digest], ttl / 2)

        threads = [threading.Thread(target=race, args=(ttl,)) for ttl in (10, 1000, 20, 500)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert path_of(folder, digest).stat().st_mtime > time.time() + 900


def test_a_lock_is_released_with_its_owner(folder):
    """A lock of a killed process is free."""
    store = FileStore(folder, lock_timeout=30)
    context = multiprocessing.get_context("fork")
    held = context.Event()

    def hold():
        with store.disk.lock(store.pointers._records._path("p").parent.name):
            held.set()
            signal.pause()

    child = context.Process(target=hold)
    child.start()
    held.wait()
    impatient = FileStore(folder, lock_timeout=0.01)
    with pytest.raises(StoreUnavailable, match="has held"):
        impatient.pointers.swap("p", None, b"1")
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert store.pointers.swap("p", None, b"1")


def test_a_child_forked_under_a_lock_does_not_keep_it(folder):
    """A lock is free when its block ends, even if a child that was forked meanwhile still runs."""
    store = FileStore(folder, lock_timeout=0.01)
    context = multiprocessing.get_context("fork")
    ended = context.Event()
    with store.disk.lock("00"):
        child = context.Process(target=ended.wait)
        child.start()
    try:
        with store.disk.lock("00"):
            pass
    finally:
        ended.set()
        child.join()


def test_a_replaced_lock_file_blocks_nobody(folder):
    """Whoever waits for a lock whose file is replaced takes the new file."""
    store = FileStore(folder, lock_timeout=0.05)
    with store.disk.lock("00"):
        path = folder / "locks" / "00"
        path.unlink()
        with store.disk.lock("00"), path.open("w") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_rename_that_nfs_did_twice_is_done(store, monkeypatch):
    """A rename that succeeded but whose answer was lost is no error."""
    replace = Path.replace

    def twice(path, target):
        replace(path, target)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", twice)
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    assert contents(store, [digest]) == [content]


def test_content_is_flushed_before_it_has_a_name(store, monkeypatch, folder):
    """A blob's content is flushed before its file is renamed, and its folder after that."""
    steps = []
    fsync, replace = os.fsync, Path.replace

    def flushed(number):
        steps.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        fsync(number)

    def renamed(path, target):
        steps.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    store.blobs.put(blobs(1), HOUR)
    assert steps == ["file", "rename", "folder", "folder"]


@pytest.mark.parametrize(
    "content",
    (
        b"{",
        b'{"until": "x"}',
        b'{"owner": 5, "until": 9e9}',
        b'{"fence": "x"}',
        b'{"fence": 1.5}',
        b'{"until": 1e999}',
        b'{"until": NaN}',
        b'{"fence": ' + b"9" * 400 + b"}",
        b"[" * 50_000,
    ),
    ids=lambda content: content[:20].decode(),
)
def test_a_damaged_lease_counts_as_none(store, folder, content):
    """A lease file that is truncated, or has anything else in it, blocks nobody."""
    first = store.leases.acquire("l", "me", HOUR)
    (found,) = (folder / "leases").rglob("*/*")
    found.write_bytes(b"l\n" + content)
    assert store.leases.read("l") is None
    second = store.leases.acquire("l", "you", HOUR)
    assert second >= first
    store.leases.release("l", "you")
    assert list(store.leases.sweep(dry_run=True)) == []


def test_a_lifetime_extended_meanwhile_is_kept(store, folder, monkeypatch):
    """If another process extends a lifetime during a hold, the longer one stays."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, 10)
    lock = store.disk.lock

    def prolonged_meanwhile(stripe):
        monkeypatch.undo()
        assert store.blobs.hold([digest], 1000) == set()
        return lock(stripe)

    monkeypatch.setattr(store.disk, "lock", prolonged_meanwhile)
    assert store.blobs.hold([digest], 100) == set()
    (info,) = store.blobs.scan()
    assert info.ttl > 1000


# -- a host with a wrong clock


@pytest.fixture
def hosts(folder):
    """Return a store as this host sees it, and as a host sees it whose clock is an hour ahead."""
    right, ahead = FileStore(folder, skew=0), FileStore(folder, skew=0)
    ahead.disk.clock = lambda: time.time() + HOUR
    return right, ahead


def age(path, seconds):
    """Set a file's mtime to so many seconds ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_clock_that_is_ahead_removes_nothing_early(hosts, folder):
    """With a fast clock, the sweep and puts remove what expired by the file system's clock and
    nothing else.
    """
    right, ahead = hosts
    lives, over = blobs(300), blobs(20)
    right.blobs.put(lives, 600)
    right.blobs.put(over, 600)
    for digest in over:
        age(path_of(folder, digest), 1)
    assert {found.name for found in ahead.sweep(dry_run=True)} == set(over)
    assert {found.name for found in ahead.sweep()} == set(over)
    for _ in range(256):  # a few at a time until all are gone
        ahead.blobs._next_turn = 0.0
        ahead.blobs._sweep_some()
    assert all(path_of(folder, digest).exists() for digest in lives)
    assert right.blobs.hold(list(lives), 600) == set()


def test_storing_sweeps_by_both_clocks(hosts, folder):
    """Puts from a host with a fast clock also remove what expired by both clocks."""
    right, ahead = hosts
    over = blobs(300)
    right.blobs.put(over, 600)
    for digest in over:
        age(path_of(folder, digest), 1)
    for _ in range(256):
        ahead.blobs._next_turn = 0.0
        ahead.blobs._sweep_some()
    assert not any(path_of(folder, digest).exists() for digest in over)


def test_a_clock_that_is_ahead_misses_nothing(hosts, folder):
    """A host with a fast clock reads and holds all that is live by the file system's clock."""
    right, ahead = hosts
    digest, content = blob()
    right.blobs.put({digest: [content]}, 600)
    assert contents(ahead, [digest]) == [content]
    assert ahead.blobs.hold([digest], 10) == set()
    gone, content = blob()
    right.blobs.put({gone: [content]}, 600)
    age(path_of(folder, gone), 1)
    assert ahead.blobs.hold([gone], 1) == {gone}
    with pytest.raises(BlobMissing):
        contents(ahead, [gone])


def test_a_clock_that_is_ahead_forgets_nothing_early(hosts, folder):
    """Leases and partial files are removed by the file system's clock."""
    right, ahead = hosts
    ahead.disk.clock = lambda: time.time() + 3 * 86400
    number = right.leases.acquire("l", "me", 1)
    right.blobs.put(blobs(1), HOUR)
    for name, seconds in (("old", 90_000), ("new", 60)):
        left = folder / "tmp" / name
        left.write_bytes(b"half")
        age(left, seconds)
    assert {found.name for found in ahead.sweep()} == {"old"}
    assert right.leases.acquire("l", "me", 1) == number


def test_a_file_servers_fast_clock_expires_nothing(folder, clock):
    """Nothing expires before it does by the host's own clock, either."""
    store = FileStore(folder, clock=clock, skew=0)
    store.disk._its_clock = lambda: clock.now + HOUR
    store.blobs.put(blobs(5), 10)
    assert swept(store) == 0
    clock.advance(10)
    assert swept(store) == 5


def test_a_sweep_needs_no_room(hosts, folder, monkeypatch):
    """On a full disk the sweep works, because reading the file system's time writes nothing."""
    right, _ = hosts
    over = blobs(5)
    right.blobs.put(over, 600)
    for digest in over:
        age(path_of(folder, digest), 1)
    before = files(folder)

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(right.disk, "write_aside", full)
        assert swept(right) == 5
    assert files(folder) == [path for path in before if path.name[:2] != "b3"]


@pytest.mark.parametrize("code", (errno.EROFS, errno.EACCES))
def test_a_read_only_store_can_be_read(hosts, monkeypatch, code):
    """On a read-only file system, dry runs and reads use the host's clock."""
    _, ahead = hosts
    digest, content = blob()
    ahead.blobs.put({digest: [content]}, 600)

    def refuse(path, *args, **options):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "utime", refuse)
    assert contents(ahead, [digest]) == [content]
    assert list(ahead.sweep(dry_run=True)) == []
    ahead.disk.clock = lambda: time.time() + 2 * HOUR
    assert [found.name for found in ahead.sweep(dry_run=True)] == [digest]


OTHER = 4242  # a user of nothing else
GROUP = 4343

_AS_ANOTHER_USER = """
import os, sys
from offload.metrics.storage import sums_of
from offload.stores import open_store
from offload.stores.sums import CounterBatch
from offload.digest import digest_of
open_store("file:///x")  # imports, which that user may not read
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[3]))
os.umask(int(sys.argv[4], 8))
store, mine, theirs = open_store(sys.argv[1]), [b"mine" * 1000], [b"both" * 1000]
digests = [digest_of(mine), digest_of(theirs)]
store.blobs.put({digests[0]: mine, digests[1]: theirs}, float(sys.argv[5]))
assert store.blobs.hold(digests, float(sys.argv[5])) == set()
assert [len(bytes(found)) for found in store.blobs.get(digests, 10_000)] == [4000, 4000]
old = store.pointers.read("counter")
assert store.pointers.swap("counter", old, str(int(old or 0) + 1).encode())
assert store.leases.acquire("lease", "me", 100) and store.leases.release("lease", "me")
sums_of(store).add(CounterBatch(sys.argv[3], 1, {"a": 1}, {"a": 1}))
list(store.sweep())
print(store.pointers.read("counter").decode(), sums_of(store).total()["a"])
"""


def as_user(url, user, umask, ttl):
    """Use the store at *url* in a process of another user of the same group."""
    run = subprocess.run(
        [sys.executable, "-c", _AS_ANOTHER_USER, url, str(GROUP), str(user), umask, str(ttl)],
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or run.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")
@pytest.mark.parametrize("umask", ("002", "077"))
def test_users_of_a_group_share_a_folder(umask):
    """With ?mode=0660 and a setgid folder, users of one group change, extend, and remove each
    other's files, whatever their umasks.
    """
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        folder = Path(name, "store")
        folder.mkdir()
        os.chown(folder, 0, GROUP)
        folder.chmod(0o2770)
        url = f"file://{folder}?mode=0660"
        assert as_user(url, OTHER, umask, 100) == "1 1"
        assert as_user(url, OTHER + 1, umask, 10_000) == "2 2"  # longer than the first hold
        assert as_user(url, OTHER, umask, 20_000) == "3 3"
        for path in folder.rglob("*"):
            assert path.stat().st_gid == GROUP
            assert stat.S_IMODE(path.stat().st_mode) == (0o2770 if path.is_dir() else 0o660)
        private = f"file://{name}/private"
        Path(name).chmod(0o777)
        assert as_user(private, OTHER, umask, 10) == "1 1"
        assert "?mode=0660" in as_user(private, OTHER + 1, umask, 10)


@pytest.mark.parametrize("mode", ("0400", "0777", "0661", "x", "-1", "rw"))
def test_a_mode_is_checked(mode, folder):
    """A mode that lacks needed permissions, or makes files executable, is refused."""
    with pytest.raises(ConfigurationError, match="mode="):
        open_store(f"file://{folder}?mode={mode}")
