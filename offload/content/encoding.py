"""Blobs in the store: compressed if that pays, encrypted if there is a key, verified when read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import zstandard

from offload.content.memory import Memory
from offload.digest import Buffer, Digest, digest_of
from offload.errors import IntegrityError, KeyUnavailable, StoreError
from offload.stores.processes import Threads
from offload.stores.protocols import Parts, size_of

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher
    from offload.encryption.keys import EncryptionKey


_BATCH = 8  # chunks encoded ahead of the network: bounds the memory of compressed copies
_AHEAD = 2  # chunks that are encrypted while others are sent
_THREADS = Threads(2, "offload-encrypt")  # of all apps


class BlobEncoder:
    """Compresses blobs, and encrypts them.

    Args:
        compress: returns a blob's parts in their compressed form, and the byte that says so.
        cipher: encrypts; None without encryption.
        at_once: number of blobs that the store stores in parallel.

    Attributes:
        overhead: maximum bytes that encryption adds to a blob.
    """

    def __init__(self, compress: Encoder, cipher: BlobCipher | None, at_once: int = 1) -> None:
        self.compress = compress
        self._cipher = cipher
        self.overhead = 0 if cipher is None else cipher.overhead
        # Touching new memory takes twice as long as encrypting, so there is as little as possible.
        self._batch = min(max(at_once, _AHEAD), _BATCH - _AHEAD)

    def encode(
        self,
        digest: Digest,
        parts: Parts,
        key: EncryptionKey | None,
        room: Callable[[int], memoryview] | None = None,
    ) -> Parts:
        """Return a blob as it is stored, encrypted with *key*.

        Args:
            room: returns memory of that many bytes for the ciphertext.
        """
        compressed = self.compress(parts)
        if self._cipher is None or key is None:
            return compressed
        memory = None if room is None else room(self._cipher.memory_for(compressed))
        return self._cipher.encrypt(compressed, digest, key, memory)

    def batches(
        self, wanted: Mapping[Digest, Parts], key: EncryptionKey | None, memory: Memory
    ) -> Iterator[tuple[int, dict[Digest, Parts]]]:
        """Yield pairs of a batch's plain bytes (their number) and its blobs in stored form.

        Threads encrypt the next blobs meanwhile. Store each batch before you take the next one,
        which reuses the same *memory*.
        """
        if self._cipher is None or key is None:
            rest = iter(wanted.items())
            while plain := dict(islice(rest, _BATCH)):
                yield (
                    sum(map(size_of, plain.values())),
                    {digest: self.compress(parts) for digest, parts in plain.items()},
                )
            return

        def encoded(item: tuple[int, tuple[Digest, Parts]]) -> tuple[Digest, int, Parts]:
            number, (digest, parts) = item
            room = partial(memory.block, number % (self._batch + _AHEAD))
            return digest, size_of(parts), self.encode(digest, parts, key, room)

        ahead = _THREADS.ahead(encoded, enumerate(wanted.items()), _AHEAD)
        while batch := list(islice(ahead, self._batch)):
            yield sum(size for _, size, _ in batch), {d: stored for d, _, stored in batch}


Encoder = Callable[[Sequence[Buffer]], Sequence[Buffer]]

PLAIN, ZSTD = b"\x00", b"\x01"
_ENCRYPTED, _KEY_END = b"\x02", 10  # see `offload.encryption.blobs`
MAX_OVERHEAD = 64
"""Maximum bytes by which the stored form exceeds the plain one: blobs that don't shrink stay plain,
and encryption adds 37 bytes."""

_WINDOW = 32 << 20  # bytes to decompress an unknown frame; offload's frames need 16 MiB
_LEVEL = 1  # zstd's fastest regular level: about 1 GB/s on text
_PROBE = 32 * 1024
_SMALL = 512  # below this, a frame's overhead exceeds the gain
_MAX_RATIO = 0.8  # stored to plain size above which decompression isn't worth its time


def encoder(compression: str) -> Encoder:
    """Return a function from plain to stored parts, for a ``compression`` setting."""
    if compression == "none":
        return _plain
    return _zstd if compression == "zstd" else _probing


def _plain(parts: Sequence[Buffer]) -> Sequence[Buffer]:
    return [PLAIN, *parts]


def _zstd(parts: Sequence[Buffer]) -> Sequence[Buffer]:
    size = sum(map(len, parts))
    if size < _SMALL:
        return _plain(parts)
    compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj(size=size)
    packed = [ZSTD, *(compressor.compress(part) for part in parts), compressor.flush()]
    return packed if sum(map(len, packed)) <= size * _MAX_RATIO else _plain(parts)


def _probing(parts: Sequence[Buffer]) -> Sequence[Buffer]:
    """Compress if a sample from the middle of the longest part shrinks."""
    longest = memoryview(max(parts, key=len, default=b""))
    if len(longest) > 4 * _PROBE:
        start = (len(longest) - _PROBE) // 2
        sample = longest[start : start + _PROBE]
        if len(zstandard.ZstdCompressor(level=_LEVEL).compress(sample)) > _PROBE * _MAX_RATIO:
            return _plain(parts)
    return _zstd(parts)


def decode(stored: Buffer, limit: int, where: str) -> memoryview:
    """Return the plain bytes; raises IntegrityError for more than *limit* of them.

    Reserves at most *limit* bytes, whatever a frame claims or expands to.
    """
    view = memoryview(stored)
    kind, content = view[:1], view[1:]
    if kind == PLAIN:
        if len(content) > limit:
            raise IntegrityError(f"{where} has {len(content)} bytes, at most {limit} are allowed")
        return content
    if kind != ZSTD:
        raise _unknown(view, where)
    claimed = _claimed(content, where)
    if not 0 <= claimed <= limit:
        raise IntegrityError(f"{where} claims {claimed} bytes, at most {limit} are allowed")
    target = memoryview(bytearray(claimed))
    _decompress(content, target, where)
    return target


def decode_into(stored: Buffer, target: memoryview, where: str) -> None:
    """Fill *target* with the plain bytes; raises IntegrityError if they don't fit exactly."""
    view = memoryview(stored)
    kind, content = view[:1], view[1:]
    if kind == PLAIN:
        if len(content) != len(target):
            raise IntegrityError(f"{where} has {len(content)} bytes instead of {len(target)}")
        target[:] = content
    elif kind == ZSTD:
        claimed = _claimed(content, where)  # it also bounds the decompressor's own buffers
        if claimed != len(target):
            raise IntegrityError(f"{where} claims {claimed} bytes instead of {len(target)}")
        _decompress(content, target, where)
    else:
        raise _unknown(view, where)


def _unknown(stored: memoryview, where: str) -> StoreError:
    kind = bytes(stored[:1])
    if kind == _ENCRYPTED and len(stored) > _KEY_END:
        key = bytes(stored[2:_KEY_END]).hex()
        return KeyUnavailable(
            f"{where} is encrypted with the key {key}, and this process has no key: set "
            "offload_encryption_keys",
            key=key,
        )
    return IntegrityError(f"{where} has an unknown compression ({kind.hex() or 'empty'})")


def _claimed(content: memoryview, where: str) -> int:
    """Return the plain size that a frame's header claims, or -1 if it claims none."""
    try:
        claimed: int = zstandard.frame_content_size(content)
    except zstandard.ZstdError as exc:
        raise IntegrityError(f"{where} does not decompress: {exc}") from exc
    return claimed


def _decompress(content: memoryview, target: memoryview, where: str) -> None:
    filled = 0
    try:
        with zstandard.ZstdDecompressor().stream_reader(content, closefd=False) as reader:
            while filled < len(target) and (count := reader.readinto(target[filled:])):
                filled += count
            if filled < len(target) or reader.read(1):
                raise IntegrityError(f"{where} does not expand to {len(target)} bytes")
    except zstandard.ZstdError as exc:
        raise IntegrityError(f"{where} does not decompress: {exc}") from exc


def decode_prefix(prefix: Buffer, size: int) -> bytes:
    """Return up to *size* plain bytes from the first stored bytes of a blob.

    Returns fewer, or none, if *prefix* is too short for more.
    """
    view = memoryview(prefix)
    kind, content = view[:1], view[1:]
    if kind == PLAIN:
        return bytes(content[:size])
    if kind != ZSTD:
        return b""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    try:
        with decompressor.stream_reader(content, closefd=False) as reader:
            return reader.read(size)
    except zstandard.ZstdError:
        return b""


def read_blob(
    stored: Buffer, digest: Digest, limit: int, where: str, cipher: BlobCipher | None
) -> memoryview:
    """Return the plain content of a stored blob, verified.

    Args:
        limit: maximum bytes of the content.
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

    What isn't compressed is decrypted into its place. If this raises, the content of *target* is
    undefined.
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
