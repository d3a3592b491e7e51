"""With ?chunk_size=, no stored blob exceeds that size in any kind of store."""

from __future__ import annotations

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from offload import ConfigurationError, Offload, StoreError, StoreUnavailable
from offload.content.manifest import ALIGNMENT, pack, read_root
from offload.serializers.base import Payload
from offload.stores import open_store
from offload.stores.capabilities import chunk_size_of
from tests.support.careless_s3 import careless_s3
from tests.support.servers import redis_client, redis_server

KIB = 1024


def hook_of(store, **settings):
    app = Celery("chunks", set_as_current=False)
    return Offload(app, store=store, cache="off", stats_interval=0, **settings)


@given(
    sizes=st.lists(st.integers(0, 700 * KIB), max_size=6),
    head=st.integers(0, 100 * KIB),
    limit=st.integers(64 * KIB, 1024 * KIB),
)
def test_no_blob_exceeds_the_limit(sizes, head, limit):
    """Chunks, and roots of few buffers, are within the limit and contain the same bytes."""
    buffers = [memoryview(bytes([number]) * size) for number, size in enumerate(sizes)]
    payload = Payload("raw", b"h" * head, buffers)
    packed = pack(payload, limit=limit)
    root = b"".join(packed.root)
    chunks = [b"".join(parts) for _, parts in packed.chunks]
    assert all(len(blob) < limit for blob in (root, *chunks))
    manifest = read_root(memoryview(root), size=payload.size, where="here")
    body = memoryview(b"".join(chunks) if chunks else bytes(manifest.body))
    found_head, found = manifest.split(body)
    assert bytes(found_head) == payload.head
    assert found == buffers
    assert all(chunk.size % ALIGNMENT == 0 for chunk, _ in packed.chunks)


@pytest.mark.parametrize("kind", ("memory", "file", "fsspec", "redis", "s3", "tiers"))
def test_every_kind_of_store_has_the_option(kind, tmp_path, redis):
    """Every kind of store splits a value into chunks of that size, and reads, holds, and releases
    all of them.
    """
    option = f"chunk_size={100 * KIB}"
    with careless_s3() as s3:
        url = {
            "memory": f"memory://?{option}",
            "file": f"file://{tmp_path}/store?{option}",
            "fsspec": f"fsspec+file://{tmp_path}/store?{option}",
            "redis": f"{redis.url}?prefix=chunks&{option}",
            "s3": f"{s3}&{option}",
            "tiers": [f"{redis.url}?prefix=tiers", f"file://{tmp_path}/tier?{option}"],
        }[kind]
        hook = hook_of(url, secret="of sixteen characters")
        assert chunk_size_of(hook.store) == 100 * KIB
        for size in (90 * KIB, 101 * KIB, 3_000 * KIB):
            value = bytes(range(256)) * (size // 256)
            ref = hook.put(value)
            assert hook.get(ref) == value
            other = hook_of(url, secret="of sixteen characters")
            digests = other._runtime.content.holds.digests(other._runtime.content.open(ref.wire))
            assert len(digests) == (1 if size < 100 * KIB else -(-size // (100 * KIB - 64)) + 1)
            stored = [len(bytes(blob)) for blob in hook.store.blobs.get(digests, 1 << 23)]
            assert max(stored) <= 100 * KIB
            assert hook.store.blobs.hold(digests, 1) == set()
        hook.store.close()


@pytest.mark.parametrize("size", ("65535", "-1", "4X", "64k", ""))
def test_a_wrong_size_is_refused(size):
    """The option is a number of bytes with a lower limit."""
    with pytest.raises(ConfigurationError, match="chunk_size="):
        open_store(f"memory://?chunk_size={size}")


@pytest.mark.server
@pytest.mark.parametrize("program", ("redis-server", "valkey-server"))
def test_a_server_with_a_limit_on_strings(program):
    """A server that refuses strings of 4 MiB raises its own error; with the option it works."""
    with redis_server(program) as server, redis_client(server) as client:
        client.config_set("proto-max-bulk-len", 1024 * KIB)
        value = bytes(range(256)) * 30_000
        with pytest.raises(StoreError, match=r"invalid bulk length.*chunk_size") as caught:
            hook_of(server.url, compression="none").put(value)
        assert not isinstance(caught.value, StoreUnavailable)
        hook = hook_of(f"{server.url}?chunk_size={1024 * KIB}", compression="none")
        assert hook.get(hook.put(value)) == value
        for size in range(1024 * KIB - 400, 1024 * KIB + 400, 50):
            assert len(hook.get(hook.put(value[:size]))) == size


def test_deletions_are_sent_with_their_md5():
    """A server that requires Content-MD5 for DeleteObjects, as S3 once did, gets it."""
    with careless_s3(needs_md5=True) as url:
        store = open_store(url)
        hook = hook_of(url, secret="of sixteen characters")
        ref = hook.put(b"x" * 100_000)
        store.blobs.delete([ref.digest])
        assert list(store.blobs.scan()) == []
        store.close()
