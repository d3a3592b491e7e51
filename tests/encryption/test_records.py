"""Records of the catalog: what users say about a version is encrypted."""

from __future__ import annotations

import base64
import dataclasses

import pytest

from offload.catalog import records as catalog
from offload.catalog.names import record_pointer, version_key
from offload.encryption.keys import EncryptionKey, Keyring
from offload.errors import IntegrityError, KeyUnavailable
from offload.ref import Keys
from offload.stores.checks import MAX_POINTER

CANARY = "canary-7f3a91c2d4e5b6a8f0c1d2e3b"  # 32 bytes
RECORD = catalog.Record(
    bucket="default",
    name="model",
    version="1",
    type="dict",
    size=7,
    created=1.0,
    author=f"author {CANARY}",
    metadata={CANARY: [CANARY, "é", None]},
    ref="offload:1?",
    nonce="0" * 12,
)


def text(number):
    return f"aes256:{base64.b64encode(bytes([number]) * 32).decode()}"


def keys(*numbers, required=False):
    """Return keys that sign, always the same, with these encryption keys."""
    ring = Keyring([text(number) for number in numbers], required=required) if numbers else None
    return Keys([b"s" * 32], secret=True, keyring=ring)


def hides(value):
    return CANARY.encode() not in value and "canary" not in value.decode("utf-8", "replace")


@pytest.fixture
def pointer():
    return record_pointer("default", "model", version_key("1")[0])


# -- the catalog


def test_author_and_metadata_are_encrypted(pointer):
    """A record has its author and metadata back, and its pointer's value contains neither."""
    value = catalog.write_record(RECORD, pointer, keys(1))
    assert hides(value)
    assert not hides(catalog.write_record(RECORD, pointer, keys()))
    assert catalog.read_record(pointer, value, keys(1)) == RECORD
    assert catalog.write_record(RECORD, pointer, keys(1)) == value, "equal, for compare-and-swap"


def test_a_record_is_read_with_every_key(pointer):
    """After a rotation, the old key still opens; without it, the error has its id."""
    value = catalog.write_record(RECORD, pointer, keys(1))
    assert catalog.read_record(pointer, value, keys(2, 1)) == RECORD
    for others in (keys(2), keys()):
        with pytest.raises(KeyUnavailable) as caught:
            catalog.read_record(pointer, value, others)
        assert caught.value.key == EncryptionKey(b"\x01" * 32).id


def test_what_is_not_private_is_read_without_a_key(pointer):
    """Sweeps, which have no key, still know what a record names."""
    value = catalog.write_record(RECORD, pointer, keys(1))
    found = catalog.read_record(pointer, value, None)
    assert found == dataclasses.replace(RECORD, author="", metadata=None)


def test_required_encryption_refuses_plain_records(pointer):
    """A record from before is read with keys, and refused if encryption is required."""
    value = catalog.write_record(RECORD, pointer, keys())
    assert catalog.read_record(pointer, value, keys(1)) == RECORD
    with pytest.raises(IntegrityError, match="isn't encrypted"):
        catalog.read_record(pointer, value, keys(1, required=True))


def test_an_encrypted_part_belongs_to_its_record(pointer):
    """The encrypted part of another record doesn't open, even if the record is signed."""
    other = record_pointer("default", "model", version_key("2")[0])
    data = catalog.unseal(pointer, catalog.write_record(RECORD, pointer, keys(1)), keys(1))
    moved = catalog.seal(other, {**data, "version": "2"}, keys(1))
    with pytest.raises(IntegrityError, match="moved"):
        catalog.read_record(other, moved, keys(1))
    for bad in ("", "x", "AAAA", 5, None):
        broken = catalog.seal(pointer, {**data, "sealed": bad}, keys(1, required=True))
        with pytest.raises(IntegrityError):
            catalog.read_record(pointer, broken, keys(1, required=True))


def test_metadata_has_room_when_encrypted(pointer):
    """The largest metadata that is allowed fits into a pointer; larger is refused before."""
    metadata = "x" * (catalog.MAX_ENCRYPTED - 2)
    assert catalog.check_metadata(metadata, encrypted=True) == metadata
    large = dataclasses.replace(RECORD, metadata=metadata, ref="r" * 300, author="a" * 200)
    assert len(catalog.write_record(large, pointer, keys(1))) <= MAX_POINTER - 1000
    with pytest.raises(ValueError, match="if it is encrypted"):
        catalog.check_metadata(metadata + "x", encrypted=True)
