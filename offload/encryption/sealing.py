"""The sealed form of small records: pointers' values, and data inside references.

In bytes::

    0   1   0x02: encrypted by AES-256-GCM
    1   1   0x80: a sealed record, not a blob (see `offload.encryption.blobs`)
    2   8   id of the key
    10  12  nonce
    22  .   ciphertext, and 16 bytes of tag

The record's own key is derived from its purpose and name, and its nonce from that key and the
content. So equal records under one name have equal sealed forms, which compare-and-swap needs, and
no two contents share a nonce. A sealed record that is moved under another name doesn't open.
"""

from __future__ import annotations

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from offload.encryption.keys import ID_BYTES, EncryptionKey, Keyring, expand
from offload.errors import IntegrityError

MARK = b"\x02\x80"
_NONCE = 12
_AT = len(MARK) + ID_BYTES  # of the nonce
_START = _AT + _NONCE
OVERHEAD = _START + 16
"""Bytes by which a sealed record exceeds its content."""


def is_sealed(content: bytes) -> bool:
    """Return whether *content* has the mark of a sealed record."""
    return content[: len(MARK)] == MARK


def key_id_of(sealed: bytes) -> str:
    """Return the id of the key that sealed a record."""
    return bytes(sealed[len(MARK) : len(MARK) + ID_BYTES]).hex()


def seal(content: bytes, key: EncryptionKey, purpose: str, name: str) -> bytes:
    """Return *content* sealed with *key*; only `open_sealed` with this purpose and name opens it.

    *purpose* is one of the caller's, such as ``memo``; *name* is where the record is stored.
    """
    own = _own_key(key, purpose, name)
    nonce = hmac.digest(expand(own, b"nonce"), content, "sha256")[:_NONCE]
    start = MARK + bytes.fromhex(key.id)
    return start + nonce + AESGCM(own).encrypt(nonce, content, start)


def open_sealed(sealed: bytes, keyring: Keyring, purpose: str, name: str) -> bytes:
    """Return the content of a record sealed for this purpose and name.

    Content that isn't sealed is returned as it is, unless encryption is required.

    Raises:
        KeyUnavailable: this process doesn't have the record's key.
        IntegrityError: it was altered, or moved from another name; or it isn't encrypted, and
            encryption is required.
    """
    where = f"{purpose} {name}".strip()
    if not is_sealed(sealed):
        if keyring.required:
            raise IntegrityError(
                f"{where} isn't encrypted, and offload_encryption is 'required': it was stored "
                "before encryption was turned on, or by someone without the key; run `celery "
                "offload reencrypt` without 'required', or delete it"
            )
        return sealed
    key = keyring.find(key_id_of(sealed), where)
    start, nonce, rest = (
        sealed[: _START - _NONCE],
        sealed[_START - _NONCE : _START],
        sealed[_START:],
    )
    try:
        return AESGCM(_own_key(key, purpose, name)).decrypt(nonce, rest, start)
    except (InvalidTag, ValueError) as exc:  # ValueError: it is cut short
        raise IntegrityError(
            f"{where} was altered, or moved there from another name: its tag is wrong"
        ) from exc


def _own_key(key: EncryptionKey, purpose: str, name: str) -> bytes:
    return expand(key.derive(f"sealed {purpose}"), name.encode("utf-8", "surrogatepass"))
