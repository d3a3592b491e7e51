"""Signing keys and their sources."""

from __future__ import annotations

import base64
import dataclasses
import multiprocessing
import threading

import pytest

from offload.content.retrying import Retrying
from offload.content.signing import (
    SigningKeys,
    fingerprints,
    keys_from_secrets,
    keys_from_store,
    stored_keys,
)
from offload.encryption.keys import EncryptionKey, Keyring
from offload.errors import InvalidRef, KeyUnavailable, StoreError
from offload.metrics.counters import Counters
from offload.settings import RetryPolicy
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


# -- with encryption keys

OLD, NEW = (f"aes256:{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2))


class Signer:
    """A process with encryption keys, over one store, with a clock that the test moves."""

    def __init__(self, *sources, store=None, secret=(), **options):
        self.now = 1000.0
        self.store = MemoryStore() if store is None else store
        self.keyring = Keyring(sources, sleep=lambda _: None, **options) if sources else None
        self.signing = SigningKeys(
            self.store,
            secret,
            Counters(),
            Retrying(RetryPolicy(max_retries=0)),
            lambda: self.now,
            self.keyring,
        )

    def sign(self):
        return self.signing.keys.sign(**FIELDS)

    def open(self, ref):
        return self.signing.open(ref.wire, None)


def test_encryption_keys_sign_and_the_store_keeps_no_key():
    """Processes with the same encryption keys agree, by a key that the store never sees; the
    fingerprint is the start of the encryption key's id.
    """
    one, other = Signer(NEW), Signer(NEW)
    ref = one.sign()
    assert other.open(ref) == ref
    assert stored_keys(one.store.pointers) is None
    assert f"&k=x{one.keyring.current.id[:7]}&" in ref.wire
    assert fingerprints(one.signing.keys) == [f"x{one.keyring.current.id}"]
    assert one.signing.known is one.signing.keys
    assert one.signing.keys.keys[0] not in {b"\x02" * 32, one.keyring.current.names}


def test_all_encryption_keys_open_and_the_first_signs():
    """In each step of a rotation, the references of the step before are read."""
    old, both, rotated, new = Signer(OLD), Signer(OLD, NEW), Signer(NEW, OLD), Signer(NEW)
    for signer, readers in ((old, (both, rotated)), (both, (old, rotated)), (rotated, (both, new))):
        for reader in readers:
            assert reader.open(signer.sign()).size == 1


def test_a_missing_encryption_key_is_not_a_forgery():
    """A reference signed with an unknown encryption key raises KeyUnavailable with the key's id, as
    the message may be read elsewhere; one that was changed is an InvalidRef.
    """
    ref = Signer(NEW).sign()
    for reader in (Signer(OLD), Signer(), Signer(secret=["long enough to pass"])):
        with pytest.raises(KeyUnavailable, match="offload_encryption_keys") as caught:
            reader.open(ref)
        assert caught.value.key == EncryptionKey(b"\x02" * 32).id[:7]
    changed = dataclasses.replace(ref, wire=ref.wire.replace("n=1", "n=2"))
    with pytest.raises(InvalidRef, match="changed after it was signed"):
        Signer(NEW).open(changed)


def test_what_waits_while_encryption_is_turned_on_is_read():
    """References signed with the store's key stay valid, unless encryption is required. It is
    looked for once, when one arrives.
    """
    store = MemoryStore()
    before = Signer(store=store).sign()
    optional, required = Signer(NEW, store=store), Signer(NEW, store=store, required=True)
    assert optional.open(optional.sign()).size == 1
    assert optional.open(before) == before
    assert f"&k=x{optional.keyring.current.id[:7]}&" in optional.sign().wire
    with pytest.raises(InvalidRef):
        required.open(before)
    assert not optional.signing.refresh(), "an upload needs no other key"


def test_a_new_key_of_a_callable_is_found():
    """A callable is asked again when a reference names an unknown key, at most every 30 seconds."""
    asked = []

    def current():
        asked.append(1)
        return NEW if len(asked) > 1 else OLD

    reader = Signer(current)
    reader.sign()
    ref = Signer(NEW).sign()
    assert reader.open(ref) == ref
    assert len(asked) == 2
    for seconds, calls in ((10, 2), (25, 3), (35, 4)):
        reader.now += seconds
        with pytest.raises(KeyUnavailable):
            reader.open(Signer(f"aes256:{base64.b64encode(b'k' * 32).decode()}").sign())
        assert len(asked) == calls
    assert reader.open(Signer(OLD).sign()).size == 1


def test_a_callable_that_fails_is_unavailable():
    """If the keys can't be loaded, references can neither be signed nor refused."""

    def failing():
        raise OSError

    reader = Signer(failing, policy=RetryPolicy(max_retries=1))
    for call in (reader.sign, lambda: reader.open(Signer(NEW).sign())):
        with pytest.raises(KeyUnavailable, match="callable"):
            call()
    assert reader.signing.known is None


def test_a_secret_goes_before_encryption_keys():
    """With ``offload_secret``, it signs, whatever encrypts; what encryption keys signed is read."""
    given = ["long enough to pass"]
    both, secret, keys = Signer(NEW, secret=given), Signer(secret=given), Signer(NEW)
    assert secret.open(both.sign()).size == 1
    assert both.open(keys.sign()).size == 1
    assert both.open(secret.sign()).size == 1
    assert fingerprints(both.signing.keys)[1:] == fingerprints(keys.signing.keys)
    with pytest.raises(InvalidRef, match="offload_encryption_keys"):
        both.open(Signer(secret=["another one, long enough"]).sign())
