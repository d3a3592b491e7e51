"""Encrypted values: nothing readable is stored, everything altered is noticed, nothing twice."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from offload import IntegrityError, KeyUnavailable
from offload.content.encoding import PLAIN, read_blob, read_blob_into
from offload.content.manifest import CHUNK
from offload.digest import digest_of
from offload.encryption.blobs import BLOB_OVERHEAD, BlobCipher, key_id_of_blob
from offload.encryption.keys import EncryptionKey, Keyring, expand
from offload.inspect.content import read_content, summarize_blobs

KEY, OLD = ("aes256:" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
CANARY = b"canary: 32 bytes that are unique"
TEXT = (CANARY * 4000).decode()  # compresses
ARRAY = np.frombuffer(np.random.default_rng(1).bytes(2 * CHUNK) + CANARY * 8, np.uint8)


def same(found, value):
    return np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value


@pytest.mark.parametrize("compression", ("auto", "zstd", "none"))
@pytest.mark.parametrize("value", (TEXT, ARRAY, CANARY.decode(), [CANARY.decode(), 1]))
def test_values_are_read_back_and_stored_unreadable(make_parts, value, compression):
    """A value arrives as it was put; no blob contains it, and each names its key."""
    parts = make_parts(encryption_keys=[KEY], compression=compression)
    ref = parts.put(value)

    assert same(parts.content.reader.get(ref), value)
    assert same(parts.another().open(ref.wire).get(), value)
    for digest, blob in parts.store.stored.items():
        stored = bytes(blob.content)
        assert CANARY not in stored
        assert b"OFFLOAD1" not in stored
        assert key_id_of_blob(stored) == EncryptionKey(bytes([1]) * 32).id
        assert digest != digest_of([stored])


def test_names_are_no_hashes_of_the_content(make_parts):
    """Someone who guesses a value can't find its name without the key."""
    plain, encrypted = make_parts(), make_parts(encryption_keys=[KEY])
    for value in (TEXT, ARRAY):
        plain.put(value)
        encrypted.put(value)

    assert len(plain.store.stored) == len(encrypted.store.stored)
    assert not plain.store.stored.keys() & encrypted.store.stored.keys()


def test_deduplication_is_the_same_as_without_encryption(make_parts):
    """Equal content, and equal chunks of larger content, are uploaded as often as without keys."""
    longer = np.concatenate([ARRAY[: 2 * CHUNK], np.zeros(CHUNK, np.uint8)])
    values = [TEXT, ARRAY, TEXT, ARRAY.copy(), longer, [1], [1]]
    plain, encrypted = make_parts(), make_parts(encryption_keys=[KEY])

    uploads = [[parts.uploads(value) for value in values] for parts in (plain, encrypted)]
    other = encrypted.another()
    before = dict(encrypted.store.stored)

    assert uploads[0] == uploads[1]
    assert encrypted.store.calls["hold"] == plain.store.calls["hold"]
    other.writer.put_all([other.writer.serialize(v, "json") for v in values], hold=_hold())
    assert encrypted.store.stored.keys() == before.keys()


def _hold():
    from offload.content.holds import Hold

    return Hold(60.0)


def test_equal_content_has_equal_bytes(make_parts):
    """Two processes that store one value write the same bytes."""
    one, two = make_parts(encryption_keys=[KEY]), make_parts(encryption_keys=[KEY])
    for parts in (one, two):
        parts.put(TEXT)
        parts.put(ARRAY)

    contents = [
        {digest: bytes(blob.content) for digest, blob in parts.store.stored.items()}
        for parts in (one, two)
    ]
    assert contents[0] == contents[1]


def test_no_key_encrypts_two_contents_with_one_nonce():
    """What is compressed differently under one name has another nonce or another key."""
    cipher, key = BlobCipher(Keyring([KEY])), EncryptionKey(bytes([1]) * 32)
    digest = key.digest_of([b"content"])
    forms = [
        b"".join(cipher.encrypt([kind, content], digest, key))
        for kind, content in ((PLAIN, b"content"), (b"\x01", b"one"), (b"\x01", b"two"))
    ]

    assert len({form[1:22] for form in forms}) == 3
    for form, content in zip(forms, (b"\0content", b"\1one", b"\1two"), strict=True):
        assert bytes(cipher.decrypt(form, digest, "here")) == content
        assert len(form) == len(content) + BLOB_OVERHEAD
        for size in (11, 22, 23, 25):
            found = cipher.decrypt_prefix(form[:size], digest)
            assert content.startswith(found[: len(content)])
        assert cipher.decrypt_prefix(form, digest)[: len(content)] == content


CIPHER = BlobCipher(Keyring([KEY]))
CONTENT = [PLAIN, CANARY, b"more" * 20]
NAME = CIPHER.keyring.current.digest_of(CONTENT[1:])
STORED = b"".join(CIPHER.encrypt(CONTENT, NAME, CIPHER.keyring.current))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(STORED) * 8 - 1))
def test_any_flipped_bit_is_noticed(bit):
    """A blob of which one bit was flipped isn't read."""
    altered = bytearray(STORED)
    altered[bit // 8] ^= 1 << bit % 8

    with pytest.raises((IntegrityError, KeyUnavailable)):
        _read(bytes(altered))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.integers(0, len(STORED) - 1))
def test_anything_else_is_noticed(found):
    """Whatever is stored in place of a blob isn't read, and is refused with a typed error."""
    found = STORED[:found] if isinstance(found, int) else found

    with pytest.raises((IntegrityError, KeyUnavailable)):
        _read(found)


def _read(stored):
    """Read a blob in both ways, which must agree."""
    target = memoryview(bytearray(sum(map(len, CONTENT[1:]))))
    try:
        read_blob_into(stored, NAME, target, "here", CIPHER)
    except (IntegrityError, KeyUnavailable) as exc:
        with pytest.raises(type(exc)):
            read_blob(stored, NAME, 10_000, "here", CIPHER)
        raise
    return target


def test_a_blob_is_read_in_place():
    """What is intact is the same in a target of its size, and refused in any other."""
    assert bytes(_read(STORED)) == b"".join(CONTENT[1:])
    for size in (0, len(STORED), len(STORED) - 39):
        with pytest.raises(IntegrityError, match="bytes instead of"):
            read_blob_into(STORED, NAME, memoryview(bytearray(size)), "here", CIPHER)


@pytest.mark.parametrize("content", (b"", b"x", CANARY, CANARY * 1000, bytes(100_000)))
@pytest.mark.parametrize("kind", (PLAIN, b"\x01"))
def test_the_encrypted_form_is_that_of_another_implementation(content, kind):
    """A blob is what one call of AESGCM makes of it, however many parts it has."""
    key = CIPHER.keyring.current
    name = key.digest_of([content])
    whole = b"".join(CIPHER.encrypt([kind, content], name, key))
    parts = [memoryview(content)[at : at + 7] for at in range(0, min(len(content), 70), 7)]
    parts.append(memoryview(content)[70:])

    assert b"".join(CIPHER.encrypt([kind, *parts], name, key)) == whole
    own = expand(key.contents, b"blob" + kind + bytes.fromhex(name[3:]))
    assert AESGCM(own).decrypt(whole[10:22], whole[22:], whole[:10]) == content
    assert CIPHER.decrypt(whole, name, "here") == kind + content


@pytest.mark.parametrize("value", (TEXT, ARRAY))
@pytest.mark.parametrize("encryption", ("optional", "required"))
def test_planted_blobs_are_refused(make_parts, value, encryption):
    """Someone who can write to the store, even with an older key that leaked, can't replace a
    value by another one, encrypted or not.
    """
    parts = make_parts(encryption_keys=[KEY, OLD], encryption=encryption, compression="none")
    ref = parts.put(value)
    leaked = EncryptionKey(bytes([2]) * 32)
    for digest, blob in list(parts.store.stored.items()):
        stored = bytes(blob.content)
        plain = bytearray(CIPHER.decrypt(stored, digest, "here"))
        plain[-1] ^= 1
        for planted in (
            bytes(plain),
            b"".join(CIPHER.encrypt([PLAIN, plain[1:]], digest, leaked)),
            stored[:2] + bytes.fromhex(leaked.id) + stored[10:],
        ):
            parts.store.replace(digest, planted)
            with pytest.raises(IntegrityError) as caught:
                parts.content.reader.get(ref)
            assert caught.value.digest == digest
        parts.store.replace(digest, stored)
    assert same(parts.content.reader.get(ref), value)


@pytest.mark.parametrize("value", (TEXT, ARRAY))
def test_altered_and_moved_blobs_are_refused(make_parts, value):
    """A blob with a wrong tag, or one from another name, raises IntegrityError."""
    parts = make_parts(encryption_keys=[KEY])
    ref = parts.put(value)
    for digest, blob in list(parts.store.stored.items()):
        stored = bytes(blob.content)
        parts.store.replace(digest, stored[:-1] + bytes([stored[-1] ^ 1]))
        with pytest.raises(IntegrityError, match="its tag is wrong") as caught:
            parts.content.reader.get(ref)
        assert caught.value.digest == digest
        parts.put("another value " * 1000)
        other = next(b for d, b in parts.store.stored.items() if d != digest)
        parts.store.replace(digest, bytes(other.content))
        with pytest.raises(IntegrityError, match="altered"):
            parts.content.reader.get(ref)
        parts.store.replace(digest, stored)
    assert same(parts.content.reader.get(ref), value)


def test_a_missing_key_is_an_error_with_its_id(make_parts):
    """Without a value's key, reading makes one attempt and raises KeyUnavailable with its id."""
    parts = make_parts(encryption_keys=[OLD], secret="a secret of the app's own")
    ref = parts.put(TEXT)
    for more in ({"encryption_keys": [KEY]}, {}):
        other = parts.another(secret="a secret of the app's own", **more)
        parts.store.calls.clear()
        with pytest.raises(KeyUnavailable) as caught:
            other.open(ref.wire).get()
        assert caught.value.key == EncryptionKey(bytes([2]) * 32).id
        assert caught.value.key in str(caught.value)
        assert parts.store.calls["get"] == 1
    assert not parts.slept


def test_data_from_before_encryption_is_read_unless_it_is_required(make_parts):
    """Encryption can be turned on while plain values are stored; `required` refuses these."""
    secret = "a secret of the app's own"
    parts = make_parts(secret=secret)
    refs = [parts.put(TEXT), parts.put(ARRAY), parts.content.writer.inline_ref(_payload(parts))]

    after = parts.another(secret=secret, encryption_keys=[KEY])
    strict = parts.another(secret=secret, encryption_keys=[KEY], encryption="required")

    for ref in refs:
        assert after.open(ref.wire).get() is not None
        with pytest.raises(IntegrityError, match="isn't encrypted"):
            strict.open(ref.wire).get()


def _payload(parts):
    return parts.content.writer.serialize([CANARY.decode()], "json")


def test_values_inside_references_are_sealed(make_parts):
    """A value that travels inside its reference is encrypted there, too."""
    parts = make_parts(encryption_keys=[KEY])
    ref = parts.content.writer.inline_ref(_payload(parts))

    assert CANARY not in ref.data
    assert parts.another().open(ref.wire).get() == [CANARY.decode()]


@pytest.mark.parametrize("value", (TEXT, ARRAY))
def test_a_value_is_found_under_its_old_name_while_keys_are_rotated(make_parts, value):
    """With the old key second, a stored value isn't stored again; what is new uses the new key."""
    secret = "a secret of the app's own"
    parts = make_parts(encryption_keys=[OLD], secret=secret)
    old = parts.put(value)
    before = set(parts.store.stored)
    rotated = parts.another(encryption_keys=[KEY, OLD], secret=secret)

    ref = rotated.writer.put(value, celery_serializer="json", hold=_hold())
    fresh = rotated.writer.put("new " * 1000, celery_serializer="json", hold=_hold())

    assert ref.digest == old.digest
    assert set(parts.store.stored) - before == {fresh.digest}
    assert key_id_of_blob(parts.store.stored[fresh.digest].content) == EncryptionKey(b"\1" * 32).id
    assert same(rotated.open(ref.wire).get(), value)


def test_operators_see_encrypted_values_with_the_key(make_parts):
    """`ls` and `inspect` show an encrypted value's kind and content, with its key only."""
    parts = make_parts(encryption_keys=[KEY])
    ref, store, cipher = parts.put(ARRAY), parts.store.raw, parts.content.cipher
    digests = list(parts.store.stored)

    seen = {each.digest: each for each in summarize_blobs(store, digests, cipher)}
    content = read_content(store, ref.digest, cipher=cipher)

    assert seen[ref.digest].root.size == content.size
    assert len(seen[ref.digest].root.chunks) == len(digests) - 1
    assert b"".join(content.buffers()) == ARRAY.tobytes()
    assert all(not each.known for each in summarize_blobs(store, digests))
    with pytest.raises(KeyUnavailable):
        read_content(store, ref.digest)


def test_blobs_stay_below_a_limit_of_the_store(make_parts):
    """With a chunk_size, encrypted blobs aren't larger than it."""
    parts = make_parts(encryption_keys=[KEY], compression="none")
    parts.content.writer.blob_limit = 64 * 1024 - BLOB_OVERHEAD
    ref = parts.put(ARRAY)

    chunks = [b for digest, b in parts.store.stored.items() if digest != ref.digest]
    assert max(len(blob.content) for blob in chunks) <= 64 * 1024
