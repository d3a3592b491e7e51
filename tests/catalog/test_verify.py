"""Verify levels, with a node cache between the catalog and the store."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import numpy as np
import pytest

from offload import Catalog, IntegrityError

VALUE = np.arange(300_000)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def catalog(tmp_path, folder):
    catalog = Catalog(f"sqlite://{tmp_path}/store.db", cache=str(folder))
    catalog.save("a", VALUE)
    assert np.array_equal(catalog.load("a"), VALUE)
    return catalog


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


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


def test_only_full_reads_what_the_store_has(catalog, tmp_path):
    """An altered blob behind an intact copy is noticed by ``full`` alone, which reads the store."""
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection, connection:
        rows = connection.execute("SELECT id, content FROM content").fetchall()
        row, content = max(rows, key=lambda row: len(row[1]))
        altered = content[:-1] + bytes([content[-1] ^ 1])
        connection.execute("UPDATE content SET content = ? WHERE id = ?", (altered, row))
    assert np.array_equal(catalog.load("a", verify="integrity"), VALUE)
    with pytest.raises(IntegrityError, match="a@1"):
        catalog.load("a", verify="full")


def test_a_cleared_cache_is_filled_again(catalog, folder):
    """Without its copies, the content comes from the store, and is cached again."""
    cached_file(folder).unlink()
    for verify in ("none", "integrity"):
        assert np.array_equal(catalog.load("a", verify=verify), VALUE)
    assert cached_file(folder).exists()
