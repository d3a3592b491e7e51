"""Moving what is kept from old keys, or none, to the first key."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from offload import Catalog, ConfigurationError
from offload.classes.versions import PointerNames, Record, Storage, StoredVersion
from offload.content.manifest import CHUNK
from offload.content.store import ContentStore, Pins
from offload.digest import digest_of
from offload.encryption.keys import EncryptionKey, Keyring
from offload.metrics.counters import Counters
from offload.reencrypt import PLAIN, reencrypt
from offload.serializers.choose import Registry
from offload.settings import Settings
from offload.stores.file import FileStore
from offload.stores.memory import MemoryStore
from offload.testing.store import FakeClock

NEW, OLD = ("aes256:" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
NEW_ID, OLD_ID = (EncryptionKey(bytes([n]) * 32).id for n in (1, 2))
ARRAY = np.frombuffer(np.random.default_rng(1).bytes(2 * CHUNK + 1000), np.uint8)
VALUES = {"array": ARRAY, "text": "words " * 50_000, "small": [1, 2]}


def content_of(store, *keys, **settings):
    checked = Settings(encryption_keys=list(keys), **settings)
    return ContentStore(store, Registry(("json",)), checked, Counters())


def fill(store, keys):
    """Save objects and a class, and pin one value, with these keys; return the values' count."""
    catalog = Catalog(store, "models", **({"encryption_keys": keys} if keys else {}))
    for name, value in VALUES.items():
        catalog.save(name, value, metadata={"of": name})
    content = content_of(store, *keys)
    if store.blobs.tracks_holds:
        from offload.content.holds import Hold

        ref = content.writer.put("pinned " * 1000, celery_serializer="json", hold=Hold(60))
        Pins(content, 1).pin(ref, "a-pin")
    source = b"code"
    record = Record("shop.f", "b" * 64, digest_of([source]), 4, "cpython-311", "function", 0.0)
    Storage(store.pointers, lambda call: call(), Keyring(keys) if keys else None).put(
        StoredVersion(record, source)
    )


def check(store, keys, required="required"):
    """Read everything back with these keys."""
    catalog = Catalog(store, "models", encryption_keys=keys, encryption=required)
    for name, value in VALUES.items():
        assert np.array_equal(catalog.load(name), value)
        assert catalog.info(name)[0].metadata == {"of": name}
    content = content_of(store, *keys, encryption=required)
    if store.blobs.tracks_holds:
        assert Pins(content, 1).find("a-pin").get() == "pinned " * 1000
    storage = Storage(store.pointers, lambda call: call(), Keyring(keys, required=True))
    assert [r.hash for r in storage.records(PointerNames("shop.f"))] == ["b" * 64]
    assert storage.get([("shop.f", "b" * 64)])[0].content == b"code"


def stores(tmp_path, clock):
    return {"memory": MemoryStore(clock=clock), "file": FileStore(tmp_path / "store")}


@pytest.mark.parametrize("kind", ("memory", "file"))
@pytest.mark.parametrize("before", ([OLD], []))
def test_all_that_is_kept_moves_to_the_first_key(tmp_path, kind, before):
    """After `reencrypt`, catalogs, pins, and classes are read with the first key alone."""
    clock = FakeClock(1_000_000.0)
    store = stores(tmp_path, clock)[kind]
    fill(store, before)
    old = {info.digest for info in store.blobs.scan()}

    report = reencrypt(content_of(store, NEW, *before), grace=1.0)

    assert (report.failed, report.failures) == (0, [])
    assert report.moved["record"] == len(VALUES)
    assert report.moved["class"] == 1
    assert report.moved["pin"] == (1 if store.blobs.tracks_holds else 0)
    check(store, [NEW])
    if store.blobs.tracks_holds:
        clock.advance(10_000)
        assert not old & {info.digest for info in store.blobs.scan()}
    assert report.others.keys() <= {OLD_ID if before else PLAIN}
    again = reencrypt(content_of(store, NEW, *before), grace=1.0)
    assert sum(again.moved.values()) == 0


def test_what_moved_is_stored_once():
    """A value that was moved, and is then stored with the new key, isn't stored again."""
    store = MemoryStore()
    fill(store, [OLD])
    reencrypt(content_of(store, NEW, OLD), grace=1.0)
    before = {info.digest for info in store.blobs.scan()}

    Catalog(store, "others", encryption_keys=[NEW, OLD]).save("array", ARRAY)

    assert {info.digest for info in store.blobs.scan()} == before


def test_a_run_that_was_interrupted_goes_on():
    """What had moved before a run stopped isn't moved again; the rest is."""
    store = MemoryStore()
    fill(store, [OLD])
    names = []

    def stop(name):
        names.append(name)
        if len(names) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reencrypt(content_of(store, NEW, OLD), grace=1.0, seen=stop)
    report = reencrypt(content_of(store, NEW, OLD), grace=1.0)

    assert report.moved["record"] == len(VALUES) - 2
    check(store, [NEW])


def test_values_of_messages_stay_until_they_expire():
    """A held value stays under its old key; the report counts it, and says when it expires."""
    from offload.content.holds import Hold

    store = MemoryStore()
    old = content_of(store, OLD)
    ref = old.writer.put("waits " * 1000, celery_serializer="json", hold=Hold(600, "task:1"))

    report = reencrypt(content_of(store, NEW, OLD), grace=1.0)

    assert report.others[OLD_ID].count == 1
    assert 0 < report.others[OLD_ID].ttl <= 900
    assert content_of(store, NEW, OLD).open(ref.wire).get() == "waits " * 1000
    assert not report.as_dict()["done"]


def test_counting_changes_nothing():
    """With `dry_run`, blobs are only counted by key."""
    store = MemoryStore()
    fill(store, [])
    before = {name: store.pointers.read(name) for name in store.pointers.names()}

    report = reencrypt(content_of(store, NEW), grace=1.0, dry_run=True)

    assert report.keys.keys() == {PLAIN}
    assert before == {name: store.pointers.read(name) for name in store.pointers.names()}


def test_a_damaged_value_does_not_stop_the_others():
    """What can't be read is listed, and everything else is moved."""
    store = MemoryStore()
    fill(store, [OLD])
    digest = Catalog(store, "models", encryption_keys=[OLD]).info("text")[0].digest
    store.state.blobs[digest].content = b"damaged"

    report = reencrypt(content_of(store, NEW, OLD), grace=1.0)

    assert report.failed == 1
    assert "text" in report.failures[0]
    assert report.moved["record"] == len(VALUES) - 1


def test_it_needs_a_key():
    """Without keys there is nothing to encrypt with."""
    with pytest.raises(ConfigurationError, match="offload_encryption_keys"):
        reencrypt(content_of(MemoryStore()), grace=1.0)
