"""Stored bytes: one byte for the encoding, then the content."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from offload.content.encoding import MAX_OVERHEAD, decode, decode_into, encoder
from offload.errors import IntegrityError

MiB = 1024**2
NOISE = random.Random(1).randbytes(MiB)


def stored(setting, *parts):
    return b"".join(encoder(setting)(parts))


def peak_of(function):
    """Return the peak of Python's memory while *function* raised IntegrityError."""
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@given(
    setting=st.sampled_from(("auto", "zstd", "none")),
    parts=st.lists(st.binary(max_size=2000) | st.integers(0, 300_000).map(bytes), max_size=5),
)
def test_every_value_is_read_back(setting, parts):
    """Every value is read back unchanged, and grows by at most the leading byte."""
    plain = b"".join(parts)
    content = stored(setting, *parts)
    assert len(content) <= len(plain) + MAX_OVERHEAD
    assert decode(content, len(plain), "here") == plain
    target = bytearray(len(plain))
    decode_into(content, memoryview(target), "here")
    assert target == plain


def test_compresses_where_it_pays():
    """Text is compressed; noise and small values aren't; with ``none`` nothing is."""
    text = b"a line of text that comes again\n" * 10_000
    assert stored("auto", text)[0] == stored("zstd", text)[0] == 1
    assert stored("none", text)[0] == 0
    assert len(stored("auto", text)) < len(text) / 50
    assert stored("auto", NOISE)[0] == stored("zstd", NOISE)[0] == 0
    assert stored("zstd", b"a" * 100)[0] == 0


def test_the_probe_samples_the_middle_of_the_longest_part(monkeypatch):
    """Noise costs one sample of 32 KiB from the longest part, not a whole pass."""
    seen = []
    real = zstandard.ZstdCompressor

    class Compressor:
        def __init__(self, **options):
            self._real = real(**options)

        def compress(self, data):
            seen.append(len(data))
            return self._real.compress(data)

        def compressobj(self, **options):
            raise AssertionError("a whole pass")

    monkeypatch.setattr(zstandard, "ZstdCompressor", Compressor)
    stored("auto", b"head" * 100, NOISE, b"tail" * 100)
    assert seen == [32 * 1024]


def test_plain_parts_are_not_copied():
    """Uncompressed parts are passed on as the value's own memory."""
    part = memoryview(NOISE)
    assert encoder("auto")([part])[1] is part


@pytest.mark.parametrize(
    "content",
    (b"", b"\x02abc", b"\xff", b"\x01", b"\x01nonsense", b"\x01" + zstandard.compress(b"abc")[:-3]),
)
def test_invalid_frames_are_refused(content):
    """Unknown encodings and truncated or broken frames raise IntegrityError."""
    with pytest.raises(IntegrityError):
        decode(content, 100, "here")
    with pytest.raises(IntegrityError):
        decode_into(content, memoryview(bytearray(3)), "here")


@pytest.mark.parametrize("length", (0, 2, 4, 1000))
@pytest.mark.parametrize("pack", (lambda b: b"\0" + b, lambda b: b"\1" + zstandard.compress(b)))
def test_more_or_fewer_bytes_than_wanted_are_refused(length, pack):
    """A chunk whose size differs from its manifest raises IntegrityError."""
    with pytest.raises(IntegrityError, match="here"):
        decode_into(pack(b"x" * length), memoryview(bytearray(3)), "here")


def bomb(size, **options):
    """Return a frame of a few kilobytes that expands to *size* zeros."""
    compressor = zstandard.ZstdCompressor(level=19, **options).compressobj(size=-1)
    block = bytes(MiB)
    parts = [compressor.compress(block) for _ in range(size // MiB)]
    return b"\x01" + b"".join(parts) + compressor.flush()


def claiming(size):
    """Return a frame whose header claims *size* bytes."""
    frame = zstandard.compress(b"x" * 300)
    header = struct.pack("<IB", 0xFD2FB528, 0b1110_0000) + struct.pack("<Q", size)
    return b"\x01" + header + frame[frame.index(b"x") - 5 :]


def test_a_bomb_is_refused_before_memory_is_spent():
    """A few kilobytes that expand to 256 MiB take no more memory than the expected size."""
    frame = bomb(256 * MiB)
    assert len(frame) < 64 * 1024
    assert peak_of(lambda: decode(frame, MiB, "here")) < MiB
    target = memoryview(bytearray(MiB))
    assert peak_of(lambda: decode_into(frame, target, "here")) < MiB


@pytest.mark.parametrize("size", (MiB + 1, 2**40, 2**63, 2**64 - 3))
def test_a_claim_is_refused_before_memory_is_spent(size):
    """A frame that claims more than the expected size allocates nothing."""
    frame = claiming(size)
    assert peak_of(lambda: decode(frame, MiB, "here")) < MiB
    target = memoryview(bytearray(1000))
    assert peak_of(lambda: decode_into(frame, target, "here")) < MiB


def test_a_large_window_reserves_nothing(monkeypatch):
    """A frame with a window of 64 MiB and no size is refused before decompression, whose buffers
    Python doesn't count.
    """
    frame = bomb(
        128 * MiB,
    )
    params = zstandard.ZstdCompressionParameters(window_log=26, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=params).compressobj()
    frame = b"\x01" + compressor.compress(bytes(1000)) + compressor.flush()

    def never(*_args, **_options):
        raise AssertionError("the frame was decompressed")

    monkeypatch.setattr(zstandard, "ZstdDecompressor", never)
    with pytest.raises(IntegrityError):
        decode_into(frame, memoryview(bytearray(1000)), "here")
    with pytest.raises(IntegrityError):
        decode(frame, MiB, "here")


def test_plain_bytes_over_the_limit_are_refused():
    """Uncompressed content longer than the limit raises IntegrityError."""
    with pytest.raises(IntegrityError, match="has 11 bytes, at most 10"):
        decode(b"\0" + bytes(11), 10, "here")


def test_reading_does_not_copy_plain_bytes():
    """Decoding uncompressed content returns a view of the bytes that were read."""
    content = b"\0" + os.urandom(100)
    assert decode(content, 100, "here").obj is content
