"""Signing keys and their sources."""

from __future__ import annotations

import multiprocessing
import threading

import pytest

from offload.content.signing import (
    fingerprints,
    keys_from_secrets,
    keys_from_store,
    stored_keys,
)
from offload.errors import InvalidRef, StoreError
from offload.stores import open_store
from offload.stores.memory import MemoryStore

FIELDS = {"digest": None, "data": b"x", "size": 1, "serializer": "raw", "type": "bytes",
          "created": 1, "until": 2}  # fmt: skip


def test_concurrent_threads_get_one_key():
    """Any number of threads that create the key at once end up with the same key."""
    for _ in range(30):
        pointers = MemoryStore().pointers
        gate = threading.Barrier(8)
        found = []

        def provision(pointers=pointers, gate=gate, found=found):
            gate.wait(10)
            found.append(keys_from_store(pointers).keys[0])

        threads = [threading.Thread(target=provision) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(found) == 8
        assert len(set(found)) == 1
        assert len(found[0]) == 32


def provision_in_process(url, gate, queue):
    store = open_store(url)
    gate.wait(30)
    queue.put(keys_from_store(store.pointers).keys[0])


@pytest.mark.parametrize("kind", ("file", pytest.param("redis", marks=pytest.mark.server)))
def test_concurrent_processes_get_one_key(kind, tmp_path, request):
    """Processes over one store that create the key at once end up with the same key."""
    if kind == "file":
        url = f"file://{tmp_path}"
    else:
        url = f"{request.getfixturevalue('redis').url}?prefix=keyring"
    context = multiprocessing.get_context("fork")
    gate, queue = context.Barrier(6), context.Queue()
    processes = [
        context.Process(target=provision_in_process, args=(url, gate, queue)) for _ in range(6)
    ]
    for process in processes:
        process.start()
    keys = {queue.get(timeout=30) for _ in processes}
    for process in processes:
        process.join(30)
    assert len(keys) == 1
    assert keys_from_store(open_store(url).pointers).keys[0] in keys


def test_an_existing_key_is_kept():
    """Provisioning a store that has a key changes nothing."""
    store = MemoryStore()
    assert keys_from_store(store.pointers).keys == keys_from_store(store.pointers).keys


@pytest.mark.parametrize("content", (b"", b"short", b"x" * 65, b"x" * 33))
def test_an_invalid_key_is_refused(content):
    """A pointer that was truncated or overwritten must not become a weak or empty key."""
    store = MemoryStore("shop")
    store.pointers.swap("keys/ref", None, content)
    with pytest.raises(StoreError, match="keys/ref"):
        keys_from_store(store.pointers)


def test_a_secret_gives_the_same_key_everywhere():
    """The key depends on the secret alone; a rotation lists the new secret first."""
    old, new = "old secret of the shop", "new secret of the shop"
    ref = keys_from_secrets([old]).sign(**FIELDS)
    assert keys_from_secrets([old]).open(ref.wire) == ref
    assert keys_from_secrets([new, old]).open(ref.wire) == ref
    with pytest.raises(InvalidRef):
        keys_from_secrets([new]).open(ref.wire)
    assert keys_from_secrets([new, old]).sign(**FIELDS).wire != ref.wire


def test_the_secret_itself_is_not_the_key():
    """The signing key is derived from the secret, whose own bytes are never used."""
    secret = "s" * 32
    assert keys_from_secrets([secret]).keys[0] != secret.encode()


def test_fingerprints_distinguish_keys():
    """Fingerprints are equal for equal keys, different for others, and don't contain the key."""
    first, second = "a secret of some length", "another of some length"
    one, other = fingerprints(keys_from_secrets([first, second]))
    assert one != other
    assert fingerprints(keys_from_secrets([first])) == [one]
    assert len(one) == 16
    assert one not in keys_from_secrets([first]).keys[0].hex()


def test_looking_for_the_stores_key_creates_none():
    """Looking for the store's key creates none; signing does."""
    pointers = MemoryStore().pointers
    assert stored_keys(pointers) is None
    assert list(pointers.names()) == []
    made = keys_from_store(pointers)
    assert stored_keys(pointers).keys == made.keys
