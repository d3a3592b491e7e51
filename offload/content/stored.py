"""Plain bytes <-> what a store holds: one byte that says how, then the bytes.

``0x00`` plain; ``0x01`` one Zstandard frame (RFC 8878). Digests are of the plain bytes,
so that how something was stored never splits deduplication.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import zstandard

from offload.digest import Buffer
from offload.errors import IntegrityError

__all__ = ("MAX_OVERHEAD", "Encoder", "decode", "decode_begin", "decode_into", "encoder")

Encoder = Callable[[Sequence[Buffer]], Sequence[Buffer]]

PLAIN, ZSTD = b"\x00", b"\x01"
MAX_OVERHEAD = 1
"""Bytes by which stored bytes may exceed the plain ones: what does not shrink stays plain."""

_WINDOW = 32 << 20  # bytes that a frame of unknown origin may have reserved; ours need 16 MiB
_LEVEL = 1  # zstd's fastest regular level: about 1 GB/s on text
_PROBE = 32 * 1024
_SMALL = 512  # below this a frame's own bytes eat the gain
_PAYS = 0.8  # stored share of the plain size from which it is not worth a reader's time


def encoder(compression: str) -> Encoder:
    """Return what makes stored parts of plain parts, for a ``compression`` setting."""
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
    return packed if sum(map(len, packed)) <= size * _PAYS else _plain(parts)


def _probing(parts: Sequence[Buffer]) -> Sequence[Buffer]:
    """Compress if a sample from the middle of the longest part shrinks."""
    longest = memoryview(max(parts, key=len, default=b""))
    if len(longest) > 4 * _PROBE:
        start = (len(longest) - _PROBE) // 2
        sample = longest[start : start + _PROBE]
        if len(zstandard.ZstdCompressor(level=_LEVEL).compress(sample)) > _PROBE * _PAYS:
            return _plain(parts)
    return _zstd(parts)


def decode(stored: Buffer, limit: int, where: str) -> memoryview:
    """Return the plain bytes; more than *limit* of them raise IntegrityError.

    No more than *limit* bytes are reserved, whatever a frame claims or expands to.
    """
    view = memoryview(stored)
    kind, content = view[:1], view[1:]
    if kind == PLAIN:
        if len(content) > limit:
            raise IntegrityError(f"{where} has {len(content)} bytes, at most {limit} are allowed")
        return content
    if kind != ZSTD:
        raise IntegrityError(
            f"{where} is stored in an unknown way ({bytes(kind).hex() or 'empty'})"
        )
    claimed = _claimed(content, where)
    if not 0 <= claimed <= limit:
        raise IntegrityError(f"{where} claims {claimed} bytes, at most {limit} are allowed")
    target = memoryview(bytearray(claimed))
    _decompress(content, target, where)
    return target


def decode_into(stored: Buffer, target: memoryview, where: str) -> None:
    """Fill *target* with the plain bytes; IntegrityError if they are more or fewer."""
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
        raise IntegrityError(
            f"{where} is stored in an unknown way ({bytes(kind).hex() or 'empty'})"
        )


def _claimed(content: memoryview, where: str) -> int:
    """Return the plain size that a frame's header claims, -1 where it claims none."""
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


def decode_begin(begin: Buffer, size: int) -> bytes:
    """Return the first plain bytes of a blob of which only the first stored ones are there.

    Up to *size* of them; fewer, or none, where these do not tell more.
    """
    view = memoryview(begin)
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
