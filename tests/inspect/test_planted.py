"""Malicious blobs, as commands and pages read them."""

from __future__ import annotations

import struct
import tracemalloc

import orjson
import pytest
import zstandard

from offload.digest import digest_of
from offload.errors import IntegrityError
from offload.inspect.blobs import describe_kind
from offload.inspect.content import read_content, summarize_blobs
from offload.stores.memory import MemoryStore

PLANTED = {
    "empty buffers": ({"b": [0] * 7_900_000, "s": "tree"}, b"str"),
    "numbers": ({"b": [300] * 2_000_000, "s": "tree"}, b"str"),
    "lists": ({"b": [], "s": "tree", "more": [[]] * 5_000_000}, b"str"),
    "head": ({"b": [], "s": "tree"}, b"[" + b"[]," * 5_000_000 + b"0]"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_malicious_root_is_not_expanded(kind):
    """A few kilobytes that expand to a root of 16 MB are neither expanded nor parsed completely."""
    header, head = PLANTED[kind]
    text = orjson.dumps(header)
    start = struct.pack("<8sII", b"OFFLOAD1", len(text), len(head)) + text + head
    root = start + bytes(-len(start) % 64)
    stored = b"\x01" + zstandard.ZstdCompressor().compress(root)
    assert len(stored) < 10_000
    store, digest = MemoryStore(), digest_of([root])
    store.blobs.put({digest: [stored]}, 3600)
    del text, start, root
    tracemalloc.start()
    try:
        [seen] = summarize_blobs(store, [digest])
        assert describe_kind(seen) == "?"
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
        try:
            found = read_content(store, digest)  # which reads the blob, to verify its digest
        except IntegrityError:
            found = None
        assert found is None or found.manifest is None
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
