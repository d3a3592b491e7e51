"""While keys are rotated, what is stored under an older key isn't stored again."""

from __future__ import annotations

import base64

import pytest

from offload.content.holds import Hold
from offload.encryption.blobs import key_id_of_blob
from offload.encryption.keys import EncryptionKey

FIRST, SECOND, THIRD = ("aes256:" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2, 3))
SECRET = "a secret of the app's own"  # so that only encryption keys change
HOLD = Hold(60.0, "task:1")


def store_all(content, values):
    """Store small values as those of one message are; return their references."""
    payloads = [content.writer.serialize(value, "json") for value in values]
    stored = content.writer.store_small(payloads, [HOLD] * len(payloads))
    return [
        content.writer.put_payload(payload, hold=HOLD, stored=each)
        for payload, each in zip(payloads, stored, strict=True)
    ]


@pytest.fixture
def parts(make_parts):
    return make_parts(encryption_keys=[FIRST], secret=SECRET)


@pytest.mark.parametrize("keys", ((SECOND, FIRST), (THIRD, SECOND, FIRST)))
def test_small_values_keep_their_old_names(parts, keys):
    """Of a message's small values, only new ones are stored again, all in two round trips."""
    old, both, new = (f"value {number} " * 2000 for number in range(3))
    before = store_all(parts.content, [old, both])
    rotated = parts.another(encryption_keys=keys, secret=SECRET)
    parts.another(encryption_keys=keys[:1], secret=SECRET).writer.put(
        both, celery_serializer="json", hold=HOLD
    )
    stored = set(parts.store.stored)
    parts.store.calls.clear()
    uploads = parts.counters.snapshot()["blobs_uploaded"]

    refs = store_all(rotated, [old, both, new])

    assert dict(parts.store.calls) == {"hold": 1, "put": 1}
    assert parts.counters.snapshot()["blobs_uploaded"] == uploads + 1
    assert set(parts.store.stored) - stored == {refs[2].digest}
    assert refs[0].digest == before[0].digest
    assert refs[1].digest != before[1].digest, "the first key's name counts"
    for ref, value in zip(refs, (old, both, new), strict=True):
        assert rotated.open(ref.wire).get() == value
        assert "task:1" in parts.store.raw.blobs.holders(ref.digest)
    key = key_id_of_blob(bytes(parts.store.stored[refs[2].digest].content))
    assert key in {EncryptionKey(bytes([n]) * 32).id for n in (2, 3)}

    parts.store.calls.clear()
    again = store_all(rotated, [old, both, new])
    assert [ref.digest for ref in again] == [ref.digest for ref in refs]
    assert dict(parts.store.calls) == {"hold": 1}, "nothing is stored, and all is asked for at once"


def test_the_rate_of_repeated_values_stays_through_a_rotation(parts):
    """Each step of a rotation counts repeated values as deduplicated, small and large."""
    values = ["words " * 1000, bytes(3 << 20), list(range(5000))]
    store_all(parts.content, values)
    for value in values:
        parts.content.writer.put(value, celery_serializer="pickle", hold=HOLD)
    for keys in ((FIRST, SECOND), (SECOND, FIRST)):
        content = parts.another(encryption_keys=keys, secret=SECRET)
        before = parts.counters.snapshot()
        store_all(content, values)
        for value in values:
            content.writer.put(value, celery_serializer="pickle", hold=HOLD)
        after = parts.counters.snapshot()
        assert after["blobs_uploaded"] == before["blobs_uploaded"]


def test_reading_hashes_content_once_whatever_key_it_has(parts, monkeypatch):
    """A blob names its key, so that it is verified by that one alone, also under an older key."""
    ref = parts.content.writer.put(bytes(5 << 20), celery_serializer="pickle", hold=HOLD)
    keys = []

    def counted(given, key=None, **options):
        keys.append(key)
        return digest_of(given, key, **options)

    from offload.content import encoding

    digest_of = encoding.digest_of
    monkeypatch.setattr(encoding, "digest_of", counted)
    rotated = parts.another(encryption_keys=[SECOND, FIRST], secret=SECRET)
    assert rotated.open(ref.wire).get() == bytes(5 << 20)

    assert keys
    assert set(keys) == {EncryptionKey(bytes([1]) * 32).names}
