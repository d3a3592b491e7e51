"""The encrypted form of blobs.

In bytes::

    0   1   0x02: encrypted by AES-256-GCM
    1   1   0x00 or 0x01: how the content is compressed, as in a blob that isn't encrypted
    2   8   id of the key
    10  12  nonce
    22  .   ciphertext, and 16 bytes of tag

A blob is named by the keyed hash of its plain content, and has a key of its own, derived from that
name and the compression. The nonce is zero for content that isn't compressed, as the name
determines it; otherwise, it is derived from the compressed bytes, which another version of the
compressor may write differently. So no key ever encrypts two contents with one nonce. Equal content
has equal bytes, so it is stored once, as without encryption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from offload.digest import Buffer, Digest, digest_of
from offload.encryption.keys import ID_BYTES, EncryptionKey, Keyring, expand
from offload.encryption.sealing import is_sealed, key_id_of, open_sealed, seal
from offload.errors import IntegrityError, KeyUnavailable

MARK = b"\x02"
_PLAIN = b"\x00"  # see `offload.content.encoding`
_KINDS = (_PLAIN, b"\x01")
_NONCE = 12
_AT = 2 + ID_BYTES  # of the nonce
_START = _AT + _NONCE
_TAG = 16
_SLACK = 15  # bytes that `update_into` wants to have besides what it writes
_INLINE = "inline"  # purpose of content inside references

BLOB_OVERHEAD = _START + _TAG - 1
"""Bytes by which an encrypted blob exceeds the same one without encryption."""


@dataclass(frozen=True)
class EncryptedBlob:
    """A stored blob, to be decrypted.

    Attributes:
        key: the key that encrypted it and named it.
        is_compressed: whether its content is compressed.
        size: bytes of its content.
    """

    key: EncryptionKey
    is_compressed: bool
    size: int
    _stored: memoryview
    _digest: Digest
    _where: str

    def decrypt(self) -> memoryview:
        """Return the blob as it would be stored without encryption; see `decrypt_into`."""
        plain = memoryview(bytearray(1 + self.size))
        plain[:1] = self._stored[1:2]
        self.decrypt_into(plain[1:])
        return plain

    def decrypt_into(self, target: memoryview) -> None:
        """Fill *target*, of `size` bytes, with the content, which its tag proves to be intact.

        Raises IntegrityError; the content of *target* is then undefined.
        """
        stored = self._stored
        start, nonce = bytes(stored[:_AT]), bytes(stored[_AT:_START])
        mode = modes.GCM(nonce, bytes(stored[-_TAG:]))
        cipher = Cipher(algorithms.AES(_own_key(self.key, start[1:2], self._digest)), mode)
        decryptor = cipher.decryptor()
        decryptor.authenticate_additional_data(start)
        content = stored[_START:-_TAG]
        most = max(self.size - _SLACK, 0)
        if most:
            decryptor.update_into(content[:most], target)
        target[most:] = decryptor.update(content[most:])
        try:
            decryptor.finalize()
        except InvalidTag as exc:
            raise IntegrityError(f"{self._where} was altered: its tag is wrong") from exc


class BlobCipher:
    """Encrypts and decrypts blobs with the keys of a ring.

    Attributes:
        overhead: bytes by which an encrypted blob exceeds the same one without encryption.
    """

    overhead = BLOB_OVERHEAD

    def __init__(self, keyring: Keyring) -> None:
        self.keyring = keyring

    def encrypt(
        self,
        parts: Sequence[Buffer],
        digest: Digest,
        key: EncryptionKey,
        memory: memoryview | None = None,
    ) -> list[Buffer]:
        """Return the encrypted form of a blob.

        Args:
            parts: the blob as it would be stored without encryption; the first part is the byte
                that names the compression.
            digest: its name, by *key*.
            memory: where to write the ciphertext: `memory_for` bytes, or more.
        """
        kind, *content = parts
        kind = bytes(kind)
        own = _own_key(key, kind, digest)
        nonce = bytes(_NONCE)
        if kind != _PLAIN:
            hasher = blake3(key=expand(own, b"nonce"))
            for part in content:
                hasher.update(part)
            nonce = hasher.digest()[:_NONCE]
        start = MARK + kind + bytes.fromhex(key.id)
        if memory is None:
            memory = memoryview(bytearray(self.memory_for(parts)))
        encryptor = Cipher(algorithms.AES(own), modes.GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(start)
        filled = 0
        for part in content:
            filled += encryptor.update_into(part, memory[filled:])
        encryptor.finalize()
        return [start + nonce, memory[:filled], encryptor.tag]

    @staticmethod
    def memory_for(parts: Sequence[Buffer]) -> int:
        """Return the bytes of memory that `encrypt` needs for these parts."""
        return sum(map(len, parts)) + _SLACK

    def find(self, stored: Buffer, digest: Digest, where: str) -> EncryptedBlob | None:
        """Return a stored blob for decryption; None if it isn't encrypted.

        Raises:
            KeyUnavailable: this process doesn't have the blob's key.
            IntegrityError: it isn't encrypted, and encryption is required; or it is truncated.
        """
        view = memoryview(stored)
        if view[:1] != MARK:
            self._check_optional(where)
            return None
        kind = bytes(view[1:2])
        if len(view) < _START + _TAG or kind not in _KINDS:
            raise IntegrityError(f"{where} isn't an encrypted blob")
        key = self.keyring.find(bytes(view[2:_AT]).hex(), where)
        size = len(view) - _START - _TAG
        return EncryptedBlob(key, kind != _PLAIN, size, view, digest, where)

    def decrypt(self, stored: Buffer, digest: Digest, where: str) -> Buffer:
        """Return a blob as it would be stored without encryption.

        One that isn't encrypted is returned as it is, unless encryption is required. The caller
        verifies the content.

        Raises as `find` does, and IntegrityError if it was altered.
        """
        found = self.find(stored, digest, where)
        return stored if found is None else found.decrypt()

    def decrypt_prefix(self, prefix: bytes, digest: Digest) -> bytes:
        """Return the first bytes of a blob as it would be stored without encryption.

        They aren't verified: a tag covers a whole blob. Returns nothing without the blob's key.
        """
        if prefix[:1] != MARK:
            return prefix
        kind = prefix[1:2]
        if len(prefix) < _START or kind not in _KINDS:
            return b""
        try:
            key = self.keyring.find(prefix[2:_AT].hex())
        except KeyUnavailable:
            return b""
        counter = prefix[_AT:_START] + b"\0\0\0\2"  # GCM's counter of the first block
        cipher = Cipher(algorithms.AES(_own_key(key, kind, digest)), modes.CTR(counter))
        return kind + cipher.decryptor().update(prefix[_START:])

    def matches(self, plain: Buffer, digest: Digest) -> bool:
        """Return whether *digest* is the name of this content by any of the keys.

        Unless encryption is required, also whether it is the name without a key.
        """
        if any(key.digest_of([plain]) == digest for key in self.keyring.keys):
            return True
        return not self.keyring.required and digest_of([plain]) == digest

    def seal_inline(self, content: bytes) -> bytes:
        """Return *content* sealed, to be put inside a reference."""
        return seal(content, self.keyring.current, _INLINE, "")

    def open_inline(self, content: bytes, where: str) -> bytes:
        """Return the content of `seal_inline`; raises as `decrypt` does."""
        if not is_sealed(content):
            self._check_optional(where)
            return content
        return open_sealed(content, self.keyring, _INLINE, "")

    def _check_optional(self, where: str) -> None:
        if self.keyring.required:
            raise IntegrityError(
                f"{where} isn't encrypted, and offload_encryption is 'required': it was stored by "
                "a process without keys, or before encryption was turned on; run `celery offload "
                "reencrypt` without 'required'"
            )


def key_id_of_blob(prefix: bytes) -> str | None:
    """Return the id of the key that encrypted a blob with this prefix of 10 bytes, or None."""
    return key_id_of(prefix) if prefix[:1] == MARK and len(prefix) >= _AT else None


def _own_key(key: EncryptionKey, kind: bytes, digest: Digest) -> bytes:
    return expand(key.contents, b"blob" + kind + bytes.fromhex(digest[3:]))
