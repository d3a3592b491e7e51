"""Catalogs while their store is unavailable: local copies, and saves that wait."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack

import pytest

from offload import Catalog, ObjectNotFound, StoreUnavailable, VersionConflict, open_store
from offload.catalog import copies
from offload.errors import ConfigurationError, IntegrityError, StoreError
from offload.testing.store import unique
from tests.catalog.conftest import KINDS
from tests.catalog.mortal import Mortal
from tests.support.proxy import Proxy

pytestmark = pytest.mark.server

LARGE = 5 << 20  # bytes of a value of several blobs


@pytest.fixture
def proxy(redis):
    with Proxy(redis.port) as proxy:
        yield proxy


@pytest.fixture
def prefix():
    return unique().replace("/", "-")


@pytest.fixture
def make(proxy, prefix, tmp_path):
    """Return a function that opens the catalog anew, as a process does that starts."""

    def make(offline="cached", **options):
        options = {"cache_dir": tmp_path / "local", "retry": {"max_retries": 0}, **options}
        return Catalog(f"{proxy.url}&prefix={prefix}", offline=offline, **options)

    return make


@pytest.fixture
def there(redis, prefix):
    """The catalog that others see."""
    return Catalog(f"{redis.url}?prefix={prefix}")


def blob_files(folder):
    return sorted(path for path in folder.rglob("b3-*") if path.parent.parent.name == "blobs")


# -- copies


def test_the_local_copy_while_the_remote_is_down(proxy, make, there, caplog):
    """What was loaded before an outage is loaded during it, also after a restart, with a warning
    and `stale`; what wasn't raises StoreUnavailable; afterwards, the store counts again.
    """
    there.save("model", os.urandom(LARGE))
    there.save("model", {"weights": [1, 2]}, metadata={"stage": "prod"})
    there.tag("model", "production", "2")
    there.save("other", b"x" * 5000)
    assert make().load("model") == {"weights": [1, 2]}
    proxy.refuse()
    catalog = make()
    assert catalog.load("model") == {"weights": [1, 2]}
    assert catalog["model@2"] == catalog.load("model", "production") == {"weights": [1, 2]}
    assert "out of date" in caplog.text
    info = catalog.info("model", "latest")
    assert (info.version, info.metadata, info.stale) == ("2", {"stage": "prod"}, True)
    assert [record.stale for record in catalog.find("m")] == [True]
    assert catalog.stats().versions == 1
    assert catalog.buckets() == ["default"]
    assert catalog.list_objects() == ["model"]
    assert catalog.list_versions("model") == ["2"]
    for call in (
        lambda: catalog.load("other"),
        lambda: catalog.load("model", "1"),
        lambda: "other" in catalog,
        lambda: catalog.save("model", 3),
        lambda: catalog.remove("model"),
    ):
        with pytest.raises(StoreUnavailable):
            call()
    batch = catalog.load(["model", "other"])
    assert batch.results == [{"weights": [1, 2]}, None]
    assert isinstance(batch.errors["other"], StoreUnavailable)
    proxy.restore()
    there.save("model", "newer")
    assert catalog.load("model") == "newer"
    assert not catalog.info("model", "latest").stale
    with pytest.raises(ObjectNotFound):
        catalog.load("nothing")


class Switch:
    """A connection to a store, for `Mortal`, that is cut off while it is *off*."""

    off = False

    def call(self, function, *args, **options):
        if self.off:
            raise StoreUnavailable("down")
        return function(*args, **options)


@pytest.fixture
def cut_off(request, prefix, tmp_path):
    """Return a store of a kind, as others see it; the same through a connection; and what cuts
    that: a proxy, or a switch where there is no server.
    """
    kind = request.param
    with ExitStack() as stack:
        through = {}
        for name in {"redis": ["redis"], "s3": ["s3"], "tiers": ["redis", "s3"]}.get(kind, ()):
            server = request.getfixturevalue(name)
            proxy = stack.enter_context(Proxy(server.port))
            through[name] = proxy
        urls = {
            "redis": lambda proxy: f"redis://127.0.0.1:{proxy.port}/0?prefix={prefix}",
            "s3": lambda proxy: request.getfixturevalue("s3").url(prefix, port=proxy.port),
        }
        if through:
            ours = open_store([urls[name](proxy) for name, proxy in through.items()])
            theirs = open_store([urls[name](request.getfixturevalue(name)) for name in through])
            cut = lambda: [proxy.refuse() for proxy in through.values()]
            restore = lambda: [proxy.restore() for proxy in through.values()]
        else:
            switch = Switch()
            places = {"memory": f"memory://{prefix}", "file": f"file://{tmp_path}/store"}
            theirs = open_store(places.get(kind, f"sqlite://{tmp_path}/store.db"))
            ours = Mortal(theirs, switch)
            cut = lambda: setattr(switch, "off", True)
            restore = lambda: setattr(switch, "off", False)
        yield theirs, ours, cut, restore
        theirs.close()
        ours.close()


@pytest.mark.parametrize("cut_off", KINDS, indirect=True)
def test_any_store_may_be_down(cut_off, tmp_path):
    """Whatever the store is, what was loaded is loaded while it is down, and saves wait for it."""
    theirs, ours, cut, restore = cut_off
    there, value = Catalog(theirs), os.urandom(LARGE)
    there.save(["a", "b"], [value, 1], metadata={"stage": "prod"}).raise_first()
    options = {"offline": "queue", "retry": {"max_retries": 0}}
    catalog = Catalog(ours, cache_dir=tmp_path / "local", **options)
    assert catalog["a"] == value
    cut()
    assert catalog["a"] == value
    assert catalog.info("a", "latest").stale
    assert catalog.find(metadata={"stage": "prod"}) == catalog.info("a")
    with pytest.raises(StoreUnavailable):
        catalog.load("b")
    assert catalog.save("a", value[::-1]).stale
    restore()
    assert catalog.sync().succeeded == ["a"]
    assert there.load("a", "2") == value[::-1]
    assert not catalog.info("a", "latest").stale


def test_the_newest_copy(proxy, make, there):
    """During an outage, `latest` is the newest version that was copied."""
    for number in range(3):
        there.save("model", number)
    catalog = make()
    assert [catalog.load("model", version) for version in ("1", "2")] == [0, 1]
    assert catalog.info("model", "latest").version == "3"
    proxy.refuse()
    assert make().load("model") == 1


def test_without_offline_an_outage_is_an_error(proxy, make, there):
    """With `cache_dir` alone, content is read from the copies, but an outage is an error."""
    there.save("model", os.urandom(LARGE))
    make(offline=None).load("model")
    proxy.refuse()
    for offline in (None, "cached"):
        catalog = make(offline=offline)
        if offline is None:
            with pytest.raises(StoreUnavailable):
                catalog.load("model")
        else:
            assert len(catalog.load("model")) == LARGE


def test_content_is_fetched_once(make, there, redis, tmp_path, caplog):
    """A value that was copied isn't fetched from the store again, and equal content isn't copied
    twice.
    """
    value = os.urandom(LARGE)
    there.save(["a", "b"], [value, value])
    assert make()["a"] == value
    files = blob_files(tmp_path)
    for digest in list(there.store.blobs.scan()):
        if digest.size > 1 << 20:
            there.store.blobs.delete([digest.digest])
    assert make()["a"] == make()["b"] == value
    assert blob_files(tmp_path) == files
    assert caplog.text == ""  # neither was fetched again


def test_an_altered_copy_is_not_used(proxy, make, there, tmp_path, caplog):
    """A file that was altered is fetched again, or refused while the store is unavailable."""
    value = os.urandom(LARGE)
    there.save("model", value)
    make()["model"]
    for path in blob_files(tmp_path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        mtime = path.stat().st_mtime
        path.write_bytes(content)
        os.utime(path, (mtime, mtime))
    assert make()["model"] == value
    assert "fetching model@1 again" in caplog.text
    path = blob_files(tmp_path)[0]
    mtime = path.stat().st_mtime
    path.write_bytes(b"\0" + path.read_bytes()[1:][::-1])
    os.utime(path, (mtime, mtime))
    proxy.refuse()
    with pytest.raises(IntegrityError, match="model@1"):
        make()["model"]


def test_an_altered_record_is_not_used(proxy, make, there, tmp_path):
    """A record whose file was altered isn't used, as its signature doesn't match."""
    there.save("model", 5, metadata={"stage": "test"})
    make()["model"]
    (path,) = (
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and b'"stage":"test"' in path.read_bytes()
    )
    path.write_bytes(path.read_bytes().replace(b'"stage":"test"', b'"stage":"prod"'))
    proxy.refuse()
    with pytest.raises(IntegrityError, match="model@1"):
        make()["model"]


def test_files_are_private(make, there, tmp_path):
    """Nobody but the owner may read or enter what is in the folder."""
    there.save("model", os.urandom(LARGE))
    make("queue")["model"]
    paths = [path for path in tmp_path.rglob("*") if path != tmp_path / "local"]
    assert paths
    for path in paths:
        allowed = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) & ~allowed == 0, path


def test_the_folder_is_bounded(proxy, make, there, tmp_path):
    """Copies take `cache_size` bytes at most; those used last stay; larger values aren't copied."""
    size = 3 << 20
    values = {name: os.urandom(size) for name in "abc"}
    for name, value in values.items():
        there.save(name, value)
    there.save("large", os.urandom(3 * size))
    catalog = make(cache_size=int(size * 2.5))
    for number, name in enumerate("abac"):
        assert catalog[name] == values[name]
        for path in tmp_path.rglob("used/*"):  # file systems' times are too coarse
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10 + number))
    assert len(catalog["large"]) == 3 * size
    assert sum(path.stat().st_size for path in blob_files(tmp_path)) <= size * 2.5
    proxy.refuse()
    for name in "ac":
        assert catalog[name] == values[name]
    with pytest.raises(StoreUnavailable):
        catalog["b"]


def test_a_process_remembers_few_names(proxy, make, monkeypatch):
    """However many names a process reads, it remembers a limited number; all have local copies."""
    monkeypatch.setattr(copies, "_STATES", 3)
    catalog = make()
    for number in range(10):
        catalog.save(f"n{number}", number)
        assert catalog[f"n{number}"] == number
    assert len(catalog._copies._states) <= 3
    proxy.refuse()
    assert [catalog[f"n{number}"] for number in range(10)] == list(range(10))


def test_wrong_options(tmp_path):
    """`offline` needs a folder, and is one of two words."""
    with pytest.raises(ConfigurationError, match="cache_dir"):
        Catalog("memory://", offline="cached")
    with pytest.raises(ConfigurationError, match="'cached' or 'queue'"):
        Catalog("memory://", cache_dir=tmp_path, offline="yes")
    with pytest.raises(ValueError, match="on_conflict"):
        Catalog("memory://", cache_dir=tmp_path, offline="queue").save("a", 1, on_conflict="merge")


# -- saves that wait


def test_saves_wait_for_the_store(proxy, make, there):
    """During an outage saves wait, also through a restart; `sync` then saves them in order."""
    catalog = make("queue")
    catalog.save("model", "one", metadata={"stage": "test"})
    proxy.refuse()
    value = os.urandom(LARGE)
    record = catalog.save("model", value)
    assert (record.version, record.size > LARGE, record.stale) == ("", True, True)
    assert make("queue").save("other", "x", "2.1").version == "2.1"
    result = make("queue").save(["model", "bad name@"], ["three", 0])
    assert result.failed == ["bad name@"]
    assert make("queue").waiting == 3
    with pytest.raises(StoreUnavailable):
        make("queue").sync()
    proxy.restore()
    synced = make("queue").sync()
    assert synced.succeeded == ["model", "other@2.1", "model"]
    assert [record.version for record in synced.results] == ["2", "2.1", "3"]
    assert [there.load("model", number) for number in (1, 2, 3)] == ["one", value, "three"]
    assert there["other@2.1"] == "x"
    assert make("queue").waiting == 0
    assert make("queue").sync().succeeded == []


def test_lists_of_different_lengths_are_refused(make):
    """Nothing is saved if there is no value for each name."""
    catalog = make("queue")
    with pytest.raises(ValueError, match="2 names need 2 objects, not 1"):
        catalog.save(["a", "b"], [1])
    assert catalog.list_objects() == []


def test_the_next_save_syncs_first(proxy, make, there):
    """A save after an outage comes after those that waited."""
    catalog = make("queue")
    proxy.refuse()
    catalog.save("model", "first")
    proxy.restore()
    assert catalog.save("model", "second").version == "2"
    assert [there.load("model", number) for number in (1, 2)] == ["first", "second"]


def test_conflicts_are_reported(proxy, make, there, tmp_path, caplog):
    """A version that somebody else saved meanwhile is a conflict; the rest is saved, and what
    was refused stays in the folder until it is discarded.
    """
    catalog = make("queue")
    proxy.refuse()
    catalog.save("model", os.urandom(LARGE), "1")
    catalog.save("model", "mine too", "2")
    catalog.save("model", "skipped", "1", on_conflict="skip")
    there.save("model", "theirs", "1")
    proxy.restore()
    result = catalog.sync()
    assert isinstance(result.errors["model@1"], VersionConflict)
    assert result.succeeded == ["model@2", "model@1"]
    assert there["model@1"] == "theirs"
    assert there["model@2"] == "mine too"
    assert catalog.waiting == 0
    queue = tmp_path / "local" / "queue"
    assert sum(path.stat().st_size for path in blob_files(queue)) > LARGE
    assert catalog.discard_refused() == 1
    assert blob_files(queue) == []


def test_saves_wait_while_the_store_refuses_the_client(proxy, make, there, monkeypatch):
    """If a store that is available again refuses this client, what waits isn't given up."""
    catalog = make("queue")
    proxy.refuse()
    for number in range(2):
        catalog.save("a", number)
    proxy.restore()
    with monkeypatch.context() as patch:

        def refuse(*_given):
            raise StoreError("it refuses this client")

        patch.setattr(type(catalog.store.blobs), "hold", refuse)
        assert catalog.sync().failed == ["a", "a"]
    assert catalog.waiting == 2
    assert not catalog.sync().failed
    assert [there.load("a", version) for version in (1, 2)] == [0, 1]


def test_a_reference_does_not_wait(proxy, make, there):
    """A save of a reference raises StoreUnavailable: its content is in the store alone."""
    there.save("a", os.urandom(LARGE))
    catalog = make("queue")
    ref = catalog.ref("a")
    proxy.refuse()
    with pytest.raises(StoreUnavailable):
        catalog.save("b", ref)
    assert catalog.waiting == 0


def test_a_journal_is_bounded(proxy, make, tmp_path):
    """A save that doesn't fit raises StoreUnavailable, and says what to do."""
    catalog = make("queue", queue_size=LARGE)
    proxy.refuse()
    catalog.save("a", os.urandom(LARGE // 2))
    with pytest.raises(StoreUnavailable, match="raise queue_size"):
        catalog.save("b", os.urandom(LARGE))
    assert catalog.waiting == 1


def test_altered_saves_are_refused(proxy, make, there, tmp_path):
    """Content or an entry that was altered while it waited isn't saved; the rest is."""
    catalog = make("queue")
    proxy.refuse()
    catalog.save("a", "content " * 1000)
    (path,) = blob_files(tmp_path / "local" / "queue")
    catalog.save("b", "entry", metadata={"stage": "test"})
    catalog.save("c", "fine")
    mtime = path.stat().st_mtime
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    os.utime(path, (mtime, mtime))
    (entry,) = (
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and b'"stage": "test"' in path.read_bytes()
    )
    entry.write_bytes(entry.read_bytes().replace(b'"test"', b'"prod"'))
    proxy.restore()
    result = catalog.sync()
    assert [type(error) for error in result.errors.values()] == [IntegrityError] * 2
    assert result.succeeded == ["c"]
    assert there.list_objects() == ["c"]


def test_buckets_share_a_journal(proxy, make, there):
    """Saves in several buckets wait together, and each gets to its own."""
    catalog = make("queue")
    proxy.refuse()
    catalog.bucket("team-a").save("model", "a")
    catalog.save("model", "default")
    proxy.restore()
    assert not catalog.sync().failed
    assert there.bucket("team-a")["model"] == "a"
    assert there["model"] == "default"
