"""Content digests: BLAKE3, written ``b3:`` and 64 hexadecimal digits.

BLAKE3 is specified at https://github.com/BLAKE3-team/BLAKE3-specs; the digest here is
its default 256-bit output. With encryption, it is its keyed mode.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NewType, Union

from blake3 import blake3

__all__ = ("Buffer", "Digest", "digest_of", "parse_digest")

Digest = NewType("Digest", str)
Buffer = Union[bytes, bytearray, memoryview]

_FORM = re.compile(r"b3:[0-9a-f]{64}", re.ASCII)
_PARALLEL = 1 << 20  # bytes from which a second thread pays
_THREADS = 2


def digest_of(parts: Iterable[Buffer], key: bytes | None = None) -> Digest:
    """Return the digest of the concatenation of *parts*.

    Buffers must be contiguous and of single bytes. Nothing is copied. With *key*, 32 bytes, it is
    BLAKE3's keyed hash, which nobody without the key can compute.
    """
    parts = list(parts)
    # With a fixed number of threads, the pool belongs to this hasher; a forked child would
    # inherit the library's shared pool.
    threads = _THREADS if sum(map(len, parts)) >= _PARALLEL else 1
    hasher = blake3(max_threads=threads) if key is None else blake3(key=key, max_threads=threads)
    for part in parts:
        hasher.update(part)
    return Digest("b3:" + hasher.hexdigest())


def parse_digest(text: str) -> Digest:
    """Return *text* as a Digest; raises ValueError if it isn't one."""
    if not _FORM.fullmatch(text):
        raise ValueError(f"not a content digest: {text[:100]!r}")
    return Digest(text)
