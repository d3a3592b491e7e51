"""Shipped classes are encrypted in the store."""

from __future__ import annotations

import base64

import pytest

from offload import CodeRefused, KeyUnavailable
from offload.classes.versions import PointerNames, Record, Storage, StoredVersion
from offload.digest import digest_of
from offload.encryption.keys import Keyring
from offload.stores.memory import MemoryStore

KEY, OTHER = ("aes256:" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
CANARY = b"a canary of 32 bytes in a source"


def storage(store, keys=(), **options):
    keyring = Keyring(keys, **options) if keys else None
    return Storage(store.pointers, lambda call: call(), keyring)


@pytest.mark.parametrize("copies", (1, 2047, 2048, 10_000))
def test_shipped_code_is_encrypted(copies):
    """Content and source of a version can only be read with the key, and are intact then."""
    store, content = MemoryStore(), CANARY * copies
    record = Record(
        class_name="shop.Filter",
        hash="a" * 64,
        digest=digest_of([content]),
        size=len(content),
        python="cpython-311",
        kind="class",
        created=0.0,
        source=digest_of([CANARY]),
        source_size=len(CANARY),
    )
    version = StoredVersion(record, content, CANARY)

    assert storage(store, [KEY]).put(version)

    names = list(store.pointers.names())
    assert not any(CANARY in store.pointers.read(name) for name in names)
    assert storage(store, [OTHER, KEY]).get([record.pair]) == [version]
    assert storage(store, [KEY]).records(PointerNames("shop.Filter")) == [record]
    for keys in ([OTHER], []):
        with pytest.raises(KeyUnavailable):
            storage(store, keys).get([record.pair])
    first = PointerNames("shop.Filter").version(record.hash)
    before = store.pointers.read(first)
    store.pointers.swap(first, before, before[:50] + bytes([before[50] ^ 1]) + before[51:])
    with pytest.raises(CodeRefused, match="altered"):
        storage(store, [KEY]).get([record.pair])


def test_code_that_is_not_encrypted_is_refused_where_encryption_is_required():
    """A version from before encryption is read, unless encryption is required."""
    store = MemoryStore()
    record = Record("shop.f", "b" * 64, digest_of([CANARY]), 32, "cpython-311", "function", 0.0)
    version = StoredVersion(record, CANARY)
    storage(store).put(version)

    assert storage(store, [KEY]).get([record.pair]) == [version]
    with pytest.raises(CodeRefused, match="isn't encrypted"):
        storage(store, [KEY], required=True).get([record.pair])
