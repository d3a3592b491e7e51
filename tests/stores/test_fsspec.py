"""Blobs through fsspec, on its local and its memory file system."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone

import fsspec
import pytest

from offload.errors import BlobMissing, ConfigurationError, StoreError, StoreUnavailable
from offload.stores import Store, open_store
from offload.stores.fsspec import FsspecStore
from offload.testing.processes import ProcessSuite
from offload.testing.store import (
    HOUR,
    BlobTests,
    ExpiryTests,
    FakeClock,
    HoldTests,
    blob,
    blobs,
    contents,
    swept,
)


class BlobsOnlySuite(BlobTests, HoldTests, ExpiryTests):
    """The conformance suite without leases, which these stores lack."""

    test_a_lease_ends_by_itself = None
    test_a_lease_that_ended_is_taken_anew = None
    test_a_renewed_lease_lives_on = None

    @pytest.fixture
    def clock(self):
        return FakeClock()

    @pytest.fixture
    def tick(self, clock):
        return lambda: clock.advance(0.02)


class TestMemory(BlobsOnlySuite):
    @pytest.fixture
    def store(self, clock):
        root = f"/{os.urandom(4).hex()}"
        return FsspecStore(
            lambda: fsspec.filesystem("memory", skip_instance_cache=True),
            url="fsspec+memory://",
            root=root,
            skew=0,
            ahead=0,
            clock=clock,
        )


class TestLocal(BlobsOnlySuite):
    @pytest.fixture
    def store(self, clock, tmp_path):
        return FsspecStore(
            lambda: fsspec.filesystem("file", skip_instance_cache=True),
            url="fsspec+file://",
            root=str(tmp_path / "store"),
            skew=0,
            ahead=0,
            clock=clock,
        )


class TestProcesses(ProcessSuite):
    test_no_swap_is_lost_among_processes = None
    test_one_process_has_the_lease = None

    @pytest.fixture
    def url(self, tmp_path):
        return f"fsspec+file://{tmp_path}/store"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(tmp_path, clock):
    system = fsspec.filesystem("file", skip_instance_cache=True)
    return FsspecStore(lambda: system, url="fsspec+file://", root=str(tmp_path), clock=clock)


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_url_opens_it(tmp_path):
    """``fsspec+PROTOCOL://`` opens the file system at that URL and passes its options on."""
    store = open_store(f"fsspec+file://{tmp_path}/a%20b?auto_mkdir=true&skew=5")
    assert isinstance(store, Store)
    assert store.url == f"fsspec+file://{tmp_path}/a%20b"
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    assert contents(store, [digest]) == [content]
    assert (tmp_path / "a b" / "blobs").is_dir()


@pytest.mark.parametrize(
    ("url", "message"),
    (
        ("fsspec+nonsense://x", "nonsense"),
        ("fsspec+file:///x?skew=soon", "skew='soon' is not a number of seconds"),
        ("fsspec+memory://x?threads=many", "threads='many' is not a whole number"),
    ),
)
def test_wrong_urls_and_options_are_named(url, message):
    """An unknown protocol or a wrong option is refused at once."""
    with pytest.raises(ConfigurationError, match=message):
        open_store(url)


def test_without_fsspec_the_extra_is_named():
    """Without fsspec, opening a store names the extra to install."""
    code = (
        "import sys; sys.modules['fsspec'] = sys.modules['fsspec.core'] = None\n"
        "from offload.stores import open_store\n"
        "open_store('fsspec+memory://x')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert 'pip install "offload[fsspec]"' in done.stderr


def test_pointers_and_leases_are_refused(store):
    """Pointers and leases, which need compare-and-swap, are refused with an alternative."""
    for call in (
        lambda: store.pointers.read("p"),
        lambda: store.pointers.swap("p", None, b""),
        lambda: store.pointers.names(),
        lambda: store.leases.acquire("l", "me", 1),
        lambda: store.leases.renew("l", "me", 1),
        lambda: store.leases.release("l", "me"),
    ):
        with pytest.raises(ConfigurationError, match="put it behind a store that does") as caught:
            call()
        assert caught.value.store == store.url


def test_content_without_a_marker_is_missing(store, tmp_path):
    """Content without a marker, from a killed writer, is missing and can be stored again."""
    digest, content = blob()
    folder = tmp_path / "blobs" / digest.replace(":", "-")
    folder.mkdir(parents=True)
    (folder / ("0" * 32)).write_bytes(content[:50])
    assert store.blobs.hold([digest], HOUR) == {digest}
    with pytest.raises(BlobMissing):
        contents(store, [digest])
    store.blobs.put({digest: [content]}, HOUR)
    assert contents(store, [digest]) == [content]


def test_repeated_holds_are_cheap(store, tmp_path, clock):
    """A lifetime is written twice as long as asked for, and again only when half has passed."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    for _ in range(5):
        assert store.blobs.hold([digest], HOUR) == set()
    assert len(files(tmp_path)) == 2
    clock.advance(HOUR - 1)
    assert store.blobs.hold([digest], HOUR) == set()
    assert len(files(tmp_path)) == 2
    clock.advance(2)
    assert store.blobs.hold([digest], HOUR) == set()
    assert len(files(tmp_path)) == 3


def test_the_sweep_removes_what_expired(store, tmp_path, clock):
    """The sweep removes what expired longer ago than clocks may differ, and nothing else."""
    ended, kept = blobs(3), blobs(2)
    store.blobs.put(ended, HOUR)
    store.blobs.put(kept, 3 * HOUR)
    clock.advance(2 * HOUR + 61)
    assert swept(store) == 0
    assert store.blobs.hold(list(ended), 1) == set(ended)
    clock.advance(60)
    assert swept(store) == 3
    assert len(files(tmp_path)) == 4
    assert store.blobs.hold(list(kept), 1) == set()
    again = next(iter(ended))
    store.blobs.put({again: ended[again]}, HOUR)
    assert contents(store, [again]) == ended[again]


@pytest.fixture(params=("file", "memory"))
def hosts(request, tmp_path):
    """Return a store as this host sees it, and as a host sees it whose clock is an hour ahead."""
    root = str(tmp_path / "store") if request.param == "file" else f"/{os.urandom(4).hex()}"

    def store():
        system = fsspec.filesystem(request.param, skip_instance_cache=True)
        return FsspecStore(lambda: system, url="fsspec+x://", root=root, skew=0, ahead=0)

    right, ahead = store(), store()
    ahead.blobs.folder.clock = lambda: time.time() + HOUR
    return right, ahead


def test_a_clock_that_is_ahead_removes_nothing_early(hosts):
    """The sweep only removes what expired by the file system's clock, too, and leaves no files."""
    right, ahead = hosts
    lives, over = blobs(5), blobs(3)
    right.blobs.put(lives, HOUR / 2)
    right.blobs.folder.clock = lambda: time.time() - HOUR
    right.blobs.put(over, 10)
    for dry_run in (True, False):
        assert {found.name for found in ahead.sweep(dry_run=dry_run)} == set(over)
    right.blobs.folder.clock = time.time
    assert right.blobs.hold(list(lives), 1) == set()
    folder = right.blobs.folder
    assert {name.replace("-", ":", 1) for name in folder.names()} == set(lives)


@pytest.mark.parametrize("zone", (None, timezone.utc, timezone(timedelta(hours=5))))
def test_time_zones_are_respected(hosts, monkeypatch, zone):
    """Time zones of a file system's timestamps are respected; without a zone they are UTC."""
    right, _ = hosts
    report = datetime(2020, 1, 2, 3, 4, 5, tzinfo=timezone.utc).astimezone(zone or timezone.utc)
    system = right.blobs.folder._systems.get()
    monkeypatch.setattr(system, "modified", lambda path: report.replace(tzinfo=zone))
    assert right.blobs.folder.time() == 1577934245.0


@pytest.mark.parametrize("raised", (NotImplementedError, FileNotFoundError, KeyError))
def test_a_file_system_without_timestamps(hosts, monkeypatch, raised):
    """If a file system has no timestamps, the sweep uses the host's clock alone."""
    right, ahead = hosts

    def modified(path):
        raise raised(path)

    monkeypatch.setattr(ahead.blobs.folder._systems.get(), "modified", modified)
    right.blobs.put(blobs(2), HOUR / 2)
    assert swept(ahead) == 2


def test_a_file_system_that_cannot_be_written(hosts, monkeypatch):
    """If the file system's time is unknown, nothing is removed; a dry run lists what expired."""
    right, ahead = hosts
    right.blobs.put(blobs(2), HOUR / 2)

    def refused(*args, **options):
        raise PermissionError("read only")

    system = ahead.blobs.folder._systems.get()
    monkeypatch.setattr(system, "pipe_file", refused)
    assert len(list(ahead.sweep(dry_run=True))) == 2
    with pytest.raises(StoreError, match="rights"):
        swept(ahead)
    assert len(list(right.blobs.scan())) == 2


def test_a_short_content_is_noticed(store, tmp_path):
    """A file shorter than what was written raises StoreUnavailable."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    (name,) = (path for path in tmp_path.rglob("*") if path.is_file() and "." not in path.name)
    name.write_bytes(content[:10])
    with pytest.raises(StoreUnavailable, match="10 of 100 bytes"):
        contents(store, [digest])


@pytest.mark.parametrize(
    ("raised", "expected"),
    ((PermissionError("no"), StoreError), (OSError("away"), StoreUnavailable)),
)
def test_errors_become_store_errors(clock, raised, expected):
    """Every error of a file system becomes a StoreError that contains the URL."""

    class Broken:
        def __getattr__(self, name):
            def call(*args, **options):
                raise raised

            return call

    store = FsspecStore(Broken, url="fsspec+broken://x", root="/x", clock=clock)
    digest, content = blob()
    for call in (
        lambda: store.blobs.put({digest: [content]}, HOUR),
        lambda: store.blobs.hold([digest], HOUR),
        lambda: contents(store, [digest]),
        lambda: store.blobs.delete([digest]),
        lambda: list(store.blobs.scan()),
    ):
        with pytest.raises(StoreError, match="fsspec\\+broken://x") as caught:
            call()
        assert type(caught.value) is expected
