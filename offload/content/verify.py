"""Reading stored blobs: decrypt, decompress, and verify them by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offload.content.compression import decode, decode_into
from offload.digest import Buffer, Digest, digest_of
from offload.errors import IntegrityError, KeyUnavailable

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher
    from offload.encryption.keys import EncryptionKey

__all__ = ("read_blob", "read_blob_into")


def read_blob(
    stored: Buffer, digest: Digest, limit: int, where: str, cipher: BlobCipher | None
) -> memoryview:
    """Return the plain content of a stored blob, verified.

    Args:
        limit: most bytes of the content.
        where: the blob and its store, for errors.
        cipher: decrypts; None without encryption.

    Raises IntegrityError, KeyUnavailable.
    """
    try:
        found = None if cipher is None else cipher.find(stored, digest, where)
        plain = decode(stored if found is None else found.decrypt(), limit, where)
    except KeyUnavailable:
        _check_mark(stored, digest, where)
        raise
    _verify(plain, digest, where, None if found is None else found.key)
    return plain


def read_blob_into(
    stored: Buffer,
    digest: Digest,
    target: memoryview,
    where: str,
    cipher: BlobCipher | None,
) -> None:
    """Fill *target* with the plain content of a stored blob, verified; see `read_blob`.

    What isn't compressed is decrypted into its place. If this raises, *target* has other bytes.
    """
    try:
        found = None if cipher is None else cipher.find(stored, digest, where)
        if found is None:
            decode_into(stored, target, where)
    except KeyUnavailable:
        _check_mark(stored, digest, where)
        raise
    if found is not None:
        if found.is_compressed:
            decode_into(found.decrypt(), target, where)
        elif found.size != len(target):
            raise IntegrityError(f"{where} has {found.size} bytes instead of {len(target)}")
        else:
            found.decrypt_into(target)
    _verify(target, digest, where, None if found is None else found.key)


def _check_mark(stored: Buffer, digest: Digest, where: str) -> None:
    """Raise IntegrityError if only the first byte says that a blob is encrypted."""
    if digest_of([memoryview(stored)[1:]]) == digest:
        raise IntegrityError(f"{where} was altered: its first byte is wrong", digest=digest)


def _verify(plain: memoryview, digest: Digest, where: str, key: EncryptionKey | None) -> None:
    # Encrypted chunks are read by several threads anyway.
    found = digest_of([plain]) if key is None else digest_of([plain], key.names, threads=1)
    if found != digest:
        raise IntegrityError(
            f"{where} was altered: its content has the digest {found}", digest=digest
        )
