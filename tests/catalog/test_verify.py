"""Levels of verification, with a node cache between the catalog and each remote store."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import numpy as np
import pytest

from offload import BlobMissing, Catalog, IntegrityError

pytestmark = pytest.mark.server

VALUE = np.arange(300_000)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(params=("sqlite", "redis", "s3", "tiers"), name="urls")
def urls_of_stores_with_a_cache(make_urls, request):
    return make_urls(request.param)


@pytest.fixture
def catalog(urls, folder):
    catalog = Catalog(urls, cache=str(folder))
    catalog.save("a", VALUE)
    assert np.array_equal(catalog.load("a"), VALUE)
    return catalog


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    mtime = path.stat().st_mtime  # when it expires, in a store in files
    path.write_bytes(content)
    os.utime(path, (mtime, mtime))


def cached_file(folder):
    (path,) = [path for path in folder.rglob("b3-*") if path.stat().st_size > VALUE.nbytes]
    return path


def test_a_copy_in_the_node_cache_is_trusted_as_the_settings_say(catalog, folder):
    """Without verifying, an altered copy of the content in the node cache isn't noticed."""
    flip_last_byte(cached_file(folder))
    assert not np.array_equal(catalog.load("a"), VALUE)


@pytest.mark.parametrize("verify", ("integrity", "full"))
def test_an_altered_copy_is_fetched_again(catalog, folder, verify):
    """When its integrity is verified, an altered copy in the node cache is never returned."""
    flip_last_byte(cached_file(folder))
    assert np.array_equal(catalog.load("a", verify=verify), VALUE)
    assert np.array_equal(catalog.load(["a"], verify=verify).results[0], VALUE)


def test_only_full_reads_what_the_store_has(catalog):
    """Only ``full``, which reads the store, notices a lost blob behind an intact copy."""
    digests = [info.digest for info in catalog.store.blobs.scan()]
    catalog.store.blobs.delete(digests)
    for verify in ("none", "integrity"):
        assert np.array_equal(catalog.load("a", verify=verify), VALUE)
    with pytest.raises(BlobMissing, match="a@1"):
        catalog.load("a", verify="full")


@pytest.mark.parametrize("urls", ("sqlite",), indirect=True)
def test_full_notices_what_was_altered_in_the_store(catalog, tmp_path):
    """Only ``full`` raises IntegrityError for an altered blob behind an intact copy."""
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection, connection:
        rows = connection.execute("SELECT id, content FROM content").fetchall()
        row, content = max(rows, key=lambda row: len(row[1]))
        altered = content[:-1] + bytes([content[-1] ^ 1])
        connection.execute("UPDATE content SET content = ? WHERE id = ?", (altered, row))
    assert np.array_equal(catalog.load("a", verify="integrity"), VALUE)
    with pytest.raises(IntegrityError, match="a@1"):
        catalog.load("a", verify="full")


@pytest.mark.parametrize("verify", ("none", "integrity", "full"))
def test_content_on_this_machine_is_always_verified(tmp_path, verify):
    """Where the store is itself on this machine's disk, there is no copy: what was altered is an
    IntegrityError that names the version, and other versions load.
    """
    catalog = Catalog(f"file://{tmp_path}/store", cache=str(tmp_path / "cache"))
    catalog.save(["a", "a"], [VALUE, VALUE + 1])
    name = str(catalog.info("a", "1").digest).replace(":", "-")
    (path,) = [path for path in tmp_path.rglob(name) if path.stat().st_size]  # one marks the name
    flip_last_byte(path)
    with pytest.raises(IntegrityError, match="a@1"):
        catalog.load("a", "1", verify=verify)
    assert np.array_equal(catalog.load("a", "2", verify=verify), VALUE + 1)


def test_a_cleared_cache_is_filled_again(catalog, folder):
    """Without its copies, the content comes from the store, and is cached again."""
    cached_file(folder).unlink()
    for verify in ("none", "integrity"):
        assert np.array_equal(catalog.load("a", verify=verify), VALUE)
    assert cached_file(folder).exists()
