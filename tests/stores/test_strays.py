"""Foreign files in a store's folder are ignored, and reported by doctor."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

import pytest

from offload.doctor.store import diagnose
from offload.metrics.storage import sums_of, sweep_sums
from offload.stores import open_store
from offload.stores.sums import CounterBatch
from offload.stores.tiered.index import index_of
from offload.testing.store import HOUR, blob, contents
from tests.support.moto_s3 import moto_s3
from tests.support.servers import redis_client

NAMES = (".DS_Store", "._notes", ".nfs000000000042", "Thumbs.db", "b3-0", "f" * 40, "a.tmp")
BYTES = b"\0\xff\xfe binary \n\n"


def use(store):
    """Store something of every kind; return the blob."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    sums_of(store).add(CounterBatch("p", 1, {"a": 1}, {"a": 1}))
    return digest, content


def holds_up(store, digest, content, *, records=True):
    """Assert that everything works, and that nothing else is listed or removed."""
    assert contents(store, [digest]) == [content]
    assert [info.digest for info in store.blobs.scan()] == [digest]
    assert list(store.blobs.find("b3:")) == [digest]
    for dry_run in (True, False):
        assert list(store.sweep(dry_run=dry_run)) == []
        assert list(sweep_sums(store, dry_run=dry_run)) == []
    assert sums_of(store).total() == {"a": 1}
    if records:
        assert list(store.pointers.names("classes/")) == ["classes/one"]
        assert store.leases.renew("lease", "me", HOUR)
    found = [
        each.what for each in diagnose(store, longest=HOUR) if "belong to the store" in each.what
    ]
    store.blobs.delete([digest])
    assert list(store.blobs.scan()) == []
    return found


def plant(folder, names=NAMES, *, digest=True):
    """Create files, folders, and files in place of folders in *folder*."""
    for number, name in enumerate(names):
        (folder / name).write_bytes(BYTES * number)
    below = folder / "@eaDir" / "inner"
    below.mkdir(parents=True)
    (below / "SYNO").write_bytes(BYTES)
    if digest:
        (folder / ("b3-" + "9" * 64)).mkdir()
    for path in folder.rglob("*"):
        if path.name in (*names, "@eaDir"):
            os.utime(path, (1, 1))  # long ago


def test_in_files(tmp_path):
    """Stray files and folders at every level of a file store are ignored and reported."""
    store = open_store(f"file://{tmp_path}/store")
    digest, content = use(store)
    assert store.pointers.swap("classes/one", None, b"1")
    assert store.leases.acquire("lease", "me", HOUR)
    root = tmp_path / "store"
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        plant(folder, [name for name in NAMES if "." in name or folder.name != "tmp"])
    for name in ("blobs/77", "pointers/77", "leases/77"):  # a file in a folder's place
        if not (root / name).exists():
            (root / name).write_bytes(BYTES)
    before = set(root.rglob("*"))
    (found,) = holds_up(store, digest, content)
    assert ".DS_Store" in found
    assert before - set(root.rglob("*")) == {
        root / "blobs" / digest[3:5] / digest.replace(":", "-")
    }


def test_a_folder_in_a_blobs_place(tmp_path):
    """A folder with a blob's name is no blob; the blob is missing."""
    store = open_store(f"file://{tmp_path}/store")
    digest, _ = blob()
    path = tmp_path / "store" / "blobs" / digest[3:5] / digest.replace(":", "-")
    path.mkdir(parents=True)
    assert store.blobs.hold([digest], 1) == {digest}
    assert store.blobs.peek([digest], 1) == [None]
    assert list(store.blobs.scan()) == []
    assert list(store.sweep()) == []
    store.blobs.delete([digest])


def test_through_fsspec(tmp_path):
    """Stray files and folders next to blobs, markers, and statistics behind fsspec are ignored and
    reported.
    """
    store = open_store(f"fsspec+file://{tmp_path}/store")
    digest, content = use(store)
    root = tmp_path / "store"
    for folder in [path for path in root.rglob("*") if path.is_dir()]:
        plant(folder, digest=False)
    (found,) = holds_up(store, digest, content, records=False)
    assert "blobs/.DS_Store" in found
    store.close()


def strays_in_a_bucket(client, bucket, prefix):
    for folder in ("blobs", "pointers", "leases", "stats", "probe"):
        for number, name in enumerate(("", *NAMES, "@eaDir/SYNO", "sub/b3-" + "9" * 64)):
            if name != "f" * 40 and not (name == "Thumbs.db" and folder == "pointers"):
                client.put_object(
                    Bucket=bucket, Key=f"{prefix}/{folder}/{name}", Body=BYTES * number
                )


def test_in_a_bucket_long_ago():
    """Stray objects are kept, even if older than everything that a sweep removes by age."""
    now = [datetime.now(timezone.utc).timestamp()]
    with moto_s3(lambda: now[0], skew=1) as store:
        client = store.client
        strays_in_a_bucket(client._clients.get(), client.bucket, client.prefix.rstrip("/"))
        now[0] += timedelta(days=10).total_seconds()
        digest, content = use(store)
        assert store.pointers.swap("classes/one", None, b"1")
        assert store.leases.acquire("lease", "me", HOUR)
        before = keys(client)
        (found,) = holds_up(store, digest, content)
        assert "blobs/.DS_Store" in found
        assert before - keys(client) == {f"{client.prefix}blobs/{digest.replace(':', '-')}"}


def keys(client):
    return {
        entry["Key"]
        for folder in ("blobs", "pointers", "leases", "stats", "probe")
        for page in client.pages(folder)
        for entry in page
    }


@pytest.mark.server
def test_among_redis_keys(redis):
    """Foreign keys, also binary ones, under the store's prefix are ignored."""
    store = open_store(f"{redis.url}?prefix=strays")
    digest, content = use(store)
    assert store.pointers.swap("classes/one", None, b"1")
    with redis_client(redis) as client:
        for folder in ("blob:{", "holds:{", "place:{", "pointer:", "lease:", "{stats}:"):
            for name in (b"\xff\xfe}", b".DS_Store", b"", b"b3:0}"):
                client.set(f"strays:{folder}".encode() + name, BYTES)
    assert [info.digest for info in store.blobs.scan()] == [digest]
    assert list(store.blobs.find("")) == [digest]
    assert list(store.pointers.names("classes/")) == ["classes/one"]
    assert sorted(store.pointers.names()) == [".DS_Store", "classes/one"]
    assert [name for some in index_of(store).digests() for name in some] == []
    assert contents(store, [digest]) == [content]
    sums_of(store).clear()
    store.close()
