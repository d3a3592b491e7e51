"""Stored form of blobs: one byte that names the compression, then the bytes.

``0x00`` plain; ``0x01`` one Zstandard frame (RFC 8878). Digests are of the plain bytes,
so compression settings never split deduplication. ``0x02`` is an encrypted blob, see
`offload.encryption.blobs`: it is decrypted first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import zstandard

from offload.digest import Buffer
from offload.errors import IntegrityError, KeyUnavailable, StoreError

__all__ = ("MAX_OVERHEAD", "Encoder", "decode", "decode_into", "decode_prefix", "encoder")

Encoder = Callable[[Sequence[Buffer]], Sequence[Buffer]]

PLAIN, ZSTD = b"\x00", b"\x01"
_ENCRYPTED, _KEY_END = b"\x02", 10  # see `offload.encryption.blobs`
MAX_OVERHEAD = 64
"""Most bytes by which the stored form exceeds the plain one: what doesn't shrink stays plain, and
encryption adds 37 bytes."""

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
