"""A very large value is stored while it is hashed, without additional calls."""

from __future__ import annotations

import base64
import subprocess
import sys
import threading

import numpy as np
import pytest

from offload.content.holds import Hold
from offload.content.manifest import CHUNK, pack
from offload.digest import digest_of, digests_of
from offload.errors import StoreUnavailable
from offload.settings import RetryPolicy
from tests.content.cache_parts import Child, noise

CHUNKS = 12
LARGE = CHUNKS * CHUNK


@pytest.fixture(scope="module")
def value():
    return noise(LARGE)


@pytest.fixture
def slow_hash(monkeypatch):
    """Let a value be hashed no faster than it is stored: each chunk waits for the test."""
    allowed = threading.Semaphore(0)
    original = pack

    def waiting(payload, *, each=None, **options):
        def wait(chunk, parts):
            each(chunk, parts)
            allowed.acquire()

        return original(payload, each=each and wait, **options)

    monkeypatch.setattr("offload.content.put.pack", waiting)
    return allowed


def calls(parts):
    """Return each hold and put with its number of blobs."""
    return [(name, len(first)) for name, first, *_ in parts.store.blobs.asked]


def ours():
    """Return the names of the threads that hash."""
    return {t.name for t in threading.enumerate()} & {"offload-hash", "offload-pack"}


def test_chunks_are_stored_while_others_are_hashed(make_parts, value, slow_hash):
    """The store has the first chunks before the last are hashed; the root is stored last."""
    parts = make_parts(compression="none")
    put = parts.store.raw.blobs.put

    def noted(blobs, ttl, **options):
        put(blobs, ttl, **options)
        slow_hash.release(4)

    parts.store.blobs._inner.put = noted
    slow_hash.release(4)
    ref = parts.put(value, native="pickle")
    assert calls(parts)[:2] == [("hold", 4), ("put", 4)]
    asked = [d for name, each, *_ in parts.store.blobs.asked if name == "hold" for d in each]
    assert len(asked) == len(set(asked)) == 1 + CHUNKS
    sent = [
        digest for name, blobs, *_ in parts.store.blobs.asked if name == "put" for digest in blobs
    ]
    assert len(sent) == len(set(sent)) == 1 + CHUNKS
    assert sent[-1] == ref.digest
    counts = parts.counters.snapshot()
    assert counts["blobs_uploaded"] == 1 + CHUNKS
    assert (counts["values_deduplicated"], counts["values_offloaded"]) == (0, 1)
    assert np.array_equal(parts.content.open(ref.wire).get(), value)


def test_a_value_in_the_store_is_looked_for_at_once(make_parts, value, slow_hash):
    """If the first chunks are in the store, one call checks all others."""
    parts = make_parts()
    slow_hash.release(100)
    parts.put(value, native="pickle")
    parts.store.blobs.asked.clear()
    while slow_hash.acquire(blocking=False):
        pass
    hold = parts.store.raw.blobs.hold

    def noted(digests, *args):
        slow_hash.release(100)
        return hold(digests, *args)

    parts.store.blobs._inner.hold = noted
    slow_hash.release(4)
    parts.put(value.copy(), native="pickle")
    assert calls(parts) == [("hold", 4), ("hold", 1 + CHUNKS - 4)]
    assert parts.counters.snapshot()["values_deduplicated"] == 1


def test_smaller_values_take_one_look(make_parts, value):
    """A value of less than 32 MiB takes one check and one write."""
    parts = make_parts()
    parts.put(value[: 7 * CHUNK], native="pickle")
    assert calls(parts) == [("hold", 8), ("put", 8)]


def test_the_reference_is_the_same(make_parts, value):
    """No matter what is stored early, the value has the same digest and blobs."""
    parts = make_parts()
    ref = parts.put(value, native="pickle")
    payload = parts.content.writer.serialize(value, "pickle")
    packed = pack(payload)
    assert ref.digest == packed.digest
    assert set(packed.digests) == set(parts.store.stored)


def test_chunks_stored_early_are_encrypted(make_parts, value, slow_hash):
    """Chunks that are stored while others are hashed are encrypted under keyed names."""
    key = "aes256:" + base64.b64encode(bytes(32)).decode()
    parts = make_parts(encryption_keys=[key], compression="none")
    slow_hash.release(4)
    hold = parts.store.raw.blobs.hold

    def noted(digests, *args):
        slow_hash.release(100)
        return hold(digests, *args)

    parts.store.blobs._inner.hold = noted
    ref = parts.put(value, native="pickle")
    assert calls(parts)[:3] == [("hold", 4), ("put", 2), ("put", 2)]  # while others are encrypted
    assert len(parts.store.stored) == 1 + CHUNKS
    assert not any(bytes(value[:CHUNK]) in bytes(b.content) for b in parts.store.stored.values())
    assert np.array_equal(parts.another().open(ref.wire).get(), value)


def test_while_keys_are_rotated_nothing_is_stored_under_a_new_name(make_parts, value):
    """A value that is stored under an older key isn't stored again, in whole or in part."""
    old, new = ("aes256:" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
    parts = make_parts(encryption_keys=[old])
    parts.put(value, native="pickle")
    before = set(parts.store.stored)
    rotated = parts.another(encryption_keys=[new, old])
    rotated.writer.put(value.copy(), celery_serializer="pickle", hold=Hold(60.0))
    assert set(parts.store.stored) == before


def test_an_unavailable_store_ends_hashing(make_parts, value, slow_hash):
    """If storing the first chunks fails, hashing ends, too, and the error is raised."""
    parts = make_parts(retry=RetryPolicy(max_retries=0))

    def fails(blobs, ttl, **options):
        slow_hash.release(1)
        raise StoreUnavailable("gone", store="memory://")

    parts.store.blobs._inner.put = fails
    slow_hash.release(4)
    with pytest.raises(StoreUnavailable):
        parts.put(value, native="pickle")
    assert not ours()


def test_an_error_of_hashing_is_raised(make_parts, value, monkeypatch):
    """An error in the thread that hashes is raised by the call."""

    def fails(payload, **options):
        raise MemoryError("no memory")

    monkeypatch.setattr("offload.content.put.pack", fails)
    with pytest.raises(MemoryError, match="no memory"):
        make_parts().put(value, native="pickle")


def test_without_threads_a_value_is_hashed_in_place(make_parts, value, monkeypatch):
    """If no thread can start, the value is still hashed and stored."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    parts = make_parts()
    ref = parts.put(value, native="pickle")
    assert np.array_equal(parts.content.open(ref.wire).get(), value)


def test_a_forked_child_stores_large_values(make_parts, value):
    """A child forked by a process that hashed ahead does so itself."""
    parts = make_parts()
    parts.put(value, native="pickle")

    def child():
        ref = parts.put(value[1:], native="pickle")
        return bool(np.array_equal(parts.content.open(ref.wire).get(), value[1:]))

    assert Child(child).result()


GREEN = """
import gevent.monkey
gevent.monkey.patch_all()
from offload.content.holds import Hold
from offload.stores.memory import MemoryStore
from tests.content.test_ahead import LARGE, noise
from tests.support.content import make_content
content = make_content(MemoryStore("green"), ("json", "pickle"))
ref = content.writer.put(noise(LARGE), celery_serializer="pickle", hold=Hold(60.0))
assert (content.open(ref.wire).get() == noise(LARGE)).all()
"""


def test_greenlets_hash_ahead():
    """Where gevent has patched threads, they are greenlets, and none blocks the others."""
    pytest.importorskip("gevent")
    done = subprocess.run([sys.executable, "-c", GREEN], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("key", (None, bytes(range(32))))
@pytest.mark.parametrize(
    "sizes", ((), (5,), (CHUNK,) * 5, (9 << 20, 1), (1, 9 << 20, 0, 3 << 20), (70_000,) * 200)
)
def test_digests_of_many_are_those_of_each(sizes, key):
    """Digests computed together are those computed one by one, in order."""
    many = [
        [memoryview(noise(size // 2, 1)), memoryview(noise(size - size // 2, 2))] for size in sizes
    ]
    assert list(digests_of(many, key)) == [digest_of(parts, key) for parts in many]


def test_digests_that_are_not_wanted():
    """A caller that stops early leaves no thread."""
    many = [[memoryview(noise(CHUNK, seed))] for seed in range(6)]
    rest = digests_of(many)
    assert next(rest) == digest_of(many[0])
    rest.close()
    assert not ours()


def test_an_error_of_the_other_thread_is_raised():
    """An error in the helping thread is raised by the caller's."""
    many = [[memoryview(noise(CHUNK, seed))] for seed in range(6)]
    many[3] = [memoryview(noise(CHUNK, 9))[::2]]  # not contiguous
    with pytest.raises(Exception, match="contiguous"):
        list(digests_of(many))
    assert not ours()
