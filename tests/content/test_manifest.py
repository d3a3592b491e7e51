"""How a value is split into blobs."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.content import manifest
from offload.content.manifest import (
    ALIGNMENT,
    CHUNK,
    SINGLE,
    aligned,
    pack,
    read_prefix,
    read_root,
    read_small_root,
    root_limit,
    small_root,
)
from offload.digest import digest_of
from offload.errors import IntegrityError, SerializationError
from offload.serializers.base import Payload

# Content that is cheap to create and differs at every position.
PATTERN = bytes(4) + (np.arange(2**20, dtype="<u4") * np.uint32(2654435761)).tobytes()


def buffer(size, start=0):
    times = (size + start) // len(PATTERN) + 1
    whole = PATTERN if times == 1 else PATTERN * times
    return memoryview(whole)[start : start + size]


def joined(parts):
    return b"".join(parts)


def read(packed, size):
    """Read a packed value back as from a store: root and chunks separately."""
    root = memoryview(joined(packed.root))
    made = read_root(root, size=size, where="test")
    chunks = b"".join(joined(parts) for _, parts in packed.chunks)
    body = memoryview(chunks) if made.chunks else made.body
    return made, *made.split(body)


EDGES = (0, 1, 63, 64, 65, 4096, SINGLE - 1, SINGLE, SINGLE + 1, CHUNK - 1, CHUNK, CHUNK + 1,
         2 * CHUNK, 2 * CHUNK + 7)  # fmt: skip
sizes = st.lists(st.sampled_from(EDGES) | st.integers(0, 5000), max_size=12).filter(
    lambda s: sum(s) < 24 * 2**20
)
heads = st.sampled_from((b"", b"head", bytes(64 * 1024), bytes(range(256)) * 300))


@settings(max_examples=60, deadline=None)
@given(head=heads, sizes=sizes)
def test_any_buffers_are_packed_and_read_back(head, sizes):
    """Any head and buffers are read back unchanged and aligned; every blob is named by its content
    and bounded in size; nothing is missing or stored twice.
    """
    buffers = [buffer(size, 3 * i) for i, size in enumerate(sizes)]
    payload = Payload("raw", head, buffers, "x")
    packed = pack(payload)
    made, found_head, found = read(packed, payload.size)
    assert bytes(found_head) == head
    assert [bytes(f) for f in found] == [bytes(b) for b in buffers]
    assert made.serializer == "raw"
    assert made.value_size == payload.size
    assert packed.digest == digest_of(packed.root)
    assert bool(packed.chunks) == (payload.size >= SINGLE)
    for chunk, content in packed.chunks:
        assert chunk.digest == digest_of(content)
        assert chunk.size == sum(map(len, content)) <= 2 * CHUNK
        assert chunk.size > 0
    assert made.body_size == sum(map(aligned, made.sizes))
    offset = 0
    for size in made.sizes:
        assert offset % ALIGNMENT == 0
        offset += aligned(size)
    start = len(joined(packed.root)) - len(made.body)
    assert start % ALIGNMENT == 0


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.sampled_from(EDGES), min_size=1, max_size=6))
def test_a_large_buffer_starts_a_chunk(sizes):
    """A buffer of at least 1 MiB starts a new chunk and is split every 4 MiB, so its chunks don't
    depend on its neighbors.
    """
    buffers = [buffer(size, i) for i, size in enumerate(sizes)]
    digests = {c.digest for c, _ in pack(Payload("raw", b"h", [*buffers, buffer(SINGLE)])).chunks}
    for one in buffers:
        if one.nbytes >= SINGLE:
            alone = pack(Payload("raw", b"other", [one])).chunks
            assert {chunk.digest for chunk, _ in alone} <= digests


def test_appending_changes_only_the_last_chunk():
    """An array with appended rows shares all whole chunks with the original."""
    short = pack(Payload("raw", b"h", [buffer(3 * CHUNK)]))
    longer = pack(Payload("raw", b"h2", [buffer(3 * CHUNK + 1000)]))
    assert [c for c, _ in longer.chunks][:3] == [c for c, _ in short.chunks]
    assert len(longer.chunks) == 4


def test_nothing_is_copied():
    """The parts are the value's own memory."""
    value = bytearray(CHUNK + 5)
    packed = pack(Payload("raw", b"h", [memoryview(value)]))
    value[0], value[-1] = 1, 2
    assert joined(packed.chunks[0][1])[0] == 1
    assert joined(packed.chunks[1][1])[:5][-1] == 2


def test_the_digest_depends_on_content_and_layout():
    """The digest depends on content and layout: buffers that swap places, or bytes that move
    between head and buffer, change it.
    """
    name = lambda head, *buffers, s="raw": (
        pack(Payload(s, head, list(map(memoryview, buffers)))).digest
    )
    assert name(b"h", b"ab", b"c") == name(b"h", b"ab", b"c")
    names = [name(b"h", b"ab", b"c"), name(b"h", b"a", b"bc"), name(b"ha", b"b", b"c"),
             name(b"h", b"abc"), name(b"h", b"abc", b""), name(b"h", b"ab\0", b"c"),
             name(b"h", b"ab", b"c", s="json")]  # fmt: skip
    assert len(set(names)) == len(names)


def test_a_value_that_is_too_fragmented_is_refused(monkeypatch):
    """A value whose layout wouldn't fit into a root is refused before anything is stored."""
    monkeypatch.setattr(manifest, "ROOT_LIMIT", 100_000)
    with pytest.raises(SerializationError, match="20000 buffers is too fragmented"):
        pack(Payload("pickle", b"", [memoryview(b"x")] * 20_000, "Thing"))


GOOD = pack(Payload("raw", b"head", [memoryview(b"content"), memoryview(b"more")]))
GOOD_ROOT = joined(GOOD.root)
GOOD_SIZE = 15


def root_of(header, head=b"head", body=b"", magic=b"OFFLOAD1"):
    text = header if isinstance(header, bytes) else orjson.dumps(header)
    start = struct.pack("<8sII", magic, len(text), len(head)) + text + head
    return start + bytes(-len(start) % 64) + body


DIGEST = digest_of([b""])


@pytest.mark.parametrize(
    "root",
    (
        b"",
        b"OFFLOAD1",
        GOOD_ROOT[:20],
        root_of({"s": "raw", "b": []}, magic=b"OFFLOAD2"),
        root_of(b"no json"),
        root_of([]),
        root_of({"b": [11]}, body=bytes(64)),
        root_of({"s": 5, "b": [11]}, body=bytes(64)),
        root_of({"s": "raw"}),
        root_of({"s": "raw", "b": 11}, body=bytes(64)),
        root_of({"s": "raw", "b": [-1, 12]}, body=bytes(64)),
        root_of({"s": "raw", "b": [11.0]}, body=bytes(64)),
        root_of({"s": "raw", "b": [True] * 11}, body=bytes(64 * 11)),
        root_of({"s": "raw", "b": ["11"]}, body=bytes(64)),
        root_of({"s": "raw", "b": [2**62]}, body=bytes(64)),
        root_of({"s": "raw", "b": [11]}, body=bytes(63)),
        root_of({"s": "raw", "b": [11]}, body=bytes(65)),
        root_of({"s": "raw", "b": [12]}, body=bytes(64)),
        root_of({"s": "raw", "b": [11], "c": [[DIGEST, 2**62]]}),
        root_of({"s": "raw", "b": [11], "c": [["../x", 64]]}),
        root_of({"s": "raw", "b": [11], "c": [[DIGEST]]}),
        root_of({"s": "raw", "b": [11], "c": {"a": 1}}),
        root_of({"s": "raw", "b": [], "x": 1}),
    ),
)
def test_an_invalid_root_is_refused(root):
    """A root that is inconsistent with itself or its reference raises IntegrityError, without
    another error or a large allocation.
    """
    with pytest.raises(IntegrityError, match="there is not a stored value"):
        read_root(memoryview(root), size=GOOD_SIZE, where="there")


@settings(deadline=None)
@given(st.integers(0, len(GOOD_ROOT) - 1), st.integers(0, 255))
def test_a_changed_byte_raises_nothing_but_integrity_error(at, byte):
    """A root with any changed byte raises IntegrityError or nothing, even before its digest is
    checked.
    """
    root = bytearray(GOOD_ROOT)
    root[at] = byte
    try:
        made = read_root(memoryview(root), size=GOOD_SIZE, where="there")
    except IntegrityError:
        return
    assert made.value_size == GOOD_SIZE


@pytest.mark.parametrize(
    "header",
    (
        {"s": "raw", "b": [15, *[0] * 99]},
        {"s": "raw", "b": [15] + [0] * 1_000_000},
        {"s": "raw", "b": [15], "c": [[DIGEST, 64], *[[DIGEST, 0]] * 3]},
        {"s": "raw", "b": [15], "c": [[DIGEST, 1]] * 64},
        {"s": "raw", "b": [15], "more": "x" * 1_000_000},
        {"s": "raw", "b": [15], "more": [[]] * 1_000_000},
    ),
    ids=("buffers", "many buffers", "empty chunks", "chunks", "text", "lists"),
)
@pytest.mark.parametrize("size", (15, None))
def test_a_header_that_is_too_long_is_refused(header, size):
    """A header that is too long for the value is refused before it is parsed."""
    root = memoryview(root_of(header, body=b"" if "c" in header else bytes(64)))
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            read_root(root, size=size, where="there")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert read_prefix(bytes(root)) is None or len(root) < 20_000


@pytest.mark.parametrize(
    ("count", "size"), ((1, 257), (1000, 257), (100_000, 257), (50_000, 4096), (300, 2_000_000))
)
def test_every_root_that_is_written_is_read(count, size):
    """The most fragmented values that serializers write are within the limits."""
    view = memoryview(bytes(size))
    payload = Payload("tree", b"h" * 200_000, [view] * count)
    root = b"".join(pack(payload).root)
    assert len(root) <= root_limit(payload.size)
    assert len(read_root(memoryview(root), size=payload.size, where="there").sizes) == count + 1


def test_a_root_of_another_size_than_its_reference_is_refused():
    """A manifest whose size differs from its reference's raises IntegrityError."""
    with pytest.raises(IntegrityError, match="describes 15 bytes, its reference 16"):
        read_root(memoryview(GOOD_ROOT), size=16, where="there")


@pytest.mark.parametrize("size", (0, 1, 63, 64, 65, 1000))
def test_small_values_are_laid_out_and_read_at_once(size):
    """`small_root` makes the blob that `pack` does, and `read_small_root` reads no other."""
    body = (bytes(range(250)) * 4)[:size]
    payload = Payload("raw", b"bytes", [memoryview(body)])
    root = small_root("raw", b"bytes", body)
    assert root == b"".join(pack(payload).root)
    assert read_small_root("raw", b"bytes", root, size) == body
    for serializer, head, other, length in (
        ("raw", b"str", root, size),
        ("json", b"bytes", root, size),
        ("raw", b"bytes", root[:-1], size),
        ("raw", b"bytes", root + bytes(64), size),
        ("raw", b"bytes", root[:16] + b" " + root[17:], size),
        ("raw", b"bytes", root, size + 1),
        ("raw", b"bytes", root, size - 1),
        ("raw", b"bytes", root, 1 << 40),
    ):
        assert read_small_root(serializer, head, other, length) is None


def test_values_that_are_not_small_have_no_such_layout():
    """A value of a KiB, or in a store whose blobs are limited to a few KiB, is left to `pack`."""
    assert small_root("raw", b"bytes", b"x" * 1019) is None
    assert small_root("raw", b"bytes", b"x", limit=4096) is None
