"""Verifying stored blobs by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offload.content.compression import decode
from offload.digest import Buffer, Digest, digest_of
from offload.errors import IntegrityError

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher

__all__ = ("read_blob",)


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
    if cipher is not None:
        stored = cipher.decrypt(stored, digest, where)
    plain = decode(stored, limit, where)
    if cipher is not None:
        if not cipher.matches(plain, digest):
            raise IntegrityError(f"{where} was altered: it doesn't match its name", digest=digest)
        return plain
    found = digest_of([plain])
    if found != digest:
        raise IntegrityError(
            f"{where} was altered: its content has the digest {found}", digest=digest
        )
    return plain
