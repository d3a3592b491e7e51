"""Encryption works while other chunks travel, in memory that is used again; nothing is copied."""

from __future__ import annotations

import base64
import errno
import os
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

from offload import IntegrityError, KeyUnavailable
from offload.content import cache, encoding, get, memory
from offload.content.cache.folder import Folder
from offload.content.encoding import encoder as encoder_of
from offload.encryption import blobs
from offload.encryption.keys import Keyring
from offload.metrics.counters import Counters
from offload.stores import open_store
from offload.stores.capabilities import puts_at_once
from offload.stores.processes import Threads
from tests.support.processes import wait_until

KEY, OTHER = ("aes256:" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
MB = 1 << 20
PIECE = 5 * MB // 4  # bytes of a chunk: small, and still kept in memory that is used again
PIECES = 14
VALUE = np.frombuffer(np.random.default_rng(1).bytes(PIECES * PIECE), np.uint8)


@pytest.fixture
def parts(make_parts):
    made = make_parts(encryption_keys=[KEY])
    made.content.writer.blob_limit = PIECE
    return made


@pytest.fixture
def allocated(monkeypatch):
    """The sizes of the blocks of memory that were reserved for large values."""
    sizes = []
    allocate = memory.allocate

    def counting(size, alignment):
        sizes.append(size)
        return allocate(size, alignment)

    for module in (memory, cache.file):
        monkeypatch.setattr(module, "allocate", counting)
    return sizes


class Counted:
    """Counts the calls of a method of a class."""

    def __init__(self, monkeypatch, kind, name):
        self._lock, self.number = threading.Lock(), 0
        function = getattr(kind, name)

        def counting(*args):
            result = function(*args)
            with self._lock:
                self.number += 1
            return result

        monkeypatch.setattr(kind, name, counting)


def test_the_next_chunks_are_encrypted_while_some_are_sent(parts, monkeypatch):
    """While the store takes the first chunks, threads encrypt the next ones, but no more."""
    encrypted = Counted(monkeypatch, blobs.BlobCipher, "encrypt")
    seen = []

    def during(name, *args):
        if name == "put" and len(seen) < 2:
            seen.append(len(args[0]))
            wait_until(lambda: encrypted.number > sum(seen), "the next chunk", 60)
            assert encrypted.number <= sum(seen) + 2

    parts.store.blobs.fail = during
    ref = parts.put(VALUE)

    assert seen == [2, 2]
    assert np.array_equal(parts.content.reader.get(ref), VALUE)


def test_ciphertexts_use_the_same_memory_again(parts, allocated):
    """However many chunks a value has, four of them are kept encrypted, and none is copied."""
    inner = parts.store.raw.blobs
    sizes, kinds = [], set()

    def take(contents, ttl, *, value_size=None):
        for content in contents.values():
            sizes.append(sum(map(len, content)))
            kinds.update(type(memoryview(part).obj) for part in content if len(part) > MB)

    inner.put = take
    tracemalloc.start()
    try:
        parts.put(VALUE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(sizes) > PIECES
    assert len(allocated) == 4
    assert sum(allocated) < 4 * (PIECE + 64)
    assert len(kinds) == 1, "every large part is a view of these blocks"
    assert peak < PIECE


def test_chunks_are_decrypted_in_place(parts, allocated):
    """Reading reserves the value's own memory, and no other for what was decrypted."""
    ref = parts.put(VALUE)
    allocated.clear()
    tracemalloc.start()
    try:
        found = parts.content.reader.get(ref)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert np.array_equal(found, VALUE)
    [size] = allocated
    assert VALUE.nbytes <= size < VALUE.nbytes + 64
    assert peak < PIECE


def test_chunks_are_decrypted_while_the_next_arrive(parts, monkeypatch):
    """While the store is read, threads decrypt and verify the chunks that have arrived."""
    ref = parts.put(VALUE)
    decrypted = Counted(monkeypatch, blobs.EncryptedBlob, "decrypt_into")
    inner, arrived = parts.store.raw.blobs, []

    def get(digests, limit):
        for digest in digests:
            if len(digests) > 1 and len(arrived) >= 2:
                wait_until(lambda: decrypted.number >= len(arrived) - 1, "a chunk", 60)
            arrived.append(digest)
            yield inner._get(digest, limit)

    monkeypatch.setattr(inner, "get", get)

    assert np.array_equal(parts.content.reader.get(ref), VALUE)
    assert len(arrived) > PIECES


@pytest.mark.parametrize("number", (3, PIECES - 1))
@pytest.mark.parametrize("alter", ("flip", "cut", "key"))
def test_an_altered_chunk_is_refused_wherever_it_is(parts, number, alter):
    """A chunk that a thread finds altered raises the same error, with its digest."""
    ref = parts.put(VALUE)
    digest = parts.content.reader.read_digests(ref)[1 + number]
    stored = bytes(parts.store.stored[digest].content)
    error = IntegrityError
    if alter == "key":
        stored, error = stored[:2] + bytes(8) + stored[10:], KeyUnavailable
    parts.store.replace(digest, stored[:-1] if alter == "cut" else stored[:-1] + b"x")

    with pytest.raises(error) as caught:
        parts.content.reader.get(ref)

    if error is IntegrityError:
        assert caught.value.digest == digest
        assert "was altered in the store" in str(caught.value)


def test_an_error_of_the_store_ends_the_encryption(parts, monkeypatch):
    """If the store refuses the first chunks, the others aren't encrypted, and nothing waits."""
    encrypted = Counted(monkeypatch, blobs.BlobCipher, "encrypt")

    def refuse(name, *args):
        if name == "put":
            raise OSError("refused")

    parts.store.blobs.fail = refuse
    with pytest.raises(OSError, match="refused"):
        parts.put(VALUE)
    assert encrypted.number <= 8

    parts.store.blobs.fail = None
    assert np.array_equal(parts.content.reader.get(parts.put(VALUE)), VALUE)


@pytest.mark.parametrize("number", (None, 0, 1, 2, 9))
def test_a_cache_file_is_filled_while_chunks_are_decrypted(
    make_parts, tmp_path, monkeypatch, number
):
    """What is decrypted is written to the node cache; if a write fails, the value is complete."""
    parts = make_parts(encryption_keys=[KEY])
    node = cache.NodeCache(Folder(tmp_path / "cache", 1 << 30), Counters())
    parts.content = content = type(parts.content)(
        parts.store, parts.content.serializers, parts.settings, parts.counters, cache=node
    )
    content.writer.blob_limit = PIECE
    ref = parts.put(VALUE)
    pwrite, writes = os.pwrite, []

    def failing(fd, data, offset):
        writes.append(offset)
        if number is not None and len(writes) == number + 1:
            raise OSError(errno.EIO, "broken")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    assert np.array_equal(content.reader.get(ref), VALUE)

    names = [path.name for path in (tmp_path / "cache").iterdir() if path.name != "lock"]
    assert names == ([ref.digest.replace(":", "-")] if number is None else [])
    if number is None:
        parts.store.calls.clear()
        assert np.array_equal(content.reader.get(ref), VALUE)
        assert not parts.store.calls["get"]


def test_without_threads_everything_is_done_in_place(parts, monkeypatch):
    """Where no thread can start, as in an exiting interpreter, values are stored and read."""
    for module in (encoding, get):
        monkeypatch.setattr(module, "_THREADS", Threads(2, "offload-none"))

    start = threading.Thread.start

    def refuse(thread):
        if thread.name.startswith("offload-none"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        ref = parts.put(VALUE)
        assert np.array_equal(parts.content.reader.get(ref), VALUE)


@pytest.mark.parametrize("window", (1, 2, 3))
def test_what_was_worked_on_is_given_up(window):
    """Neither items nor results are kept once the next result is asked for."""

    class Item:
        pass

    made = []

    def items():
        for _ in range(9):
            item = Item()
            made.append(weakref.ref(item))
            yield item
            del item

    threads = Threads(2, "offload-test")
    for number, _ in enumerate(threads.ahead(lambda item: item, items(), window)):
        del _
        kept = made[:number]
        wait_until(lambda kept=kept: not any(ref() for ref in kept), "earlier items", 60)
    threads.close()
    assert len(made) == 9


@pytest.mark.parametrize("window", (1, 2, 3, 20))
@pytest.mark.parametrize("count", (0, 1, 2, 7))
def test_threads_work_ahead_on_whatever_is_iterated(window, count):
    """Results come in order, and at most *window* items are taken before they are needed."""
    taken = []

    def items():
        for number in range(count):
            taken.append(number)
            yield number

    threads = Threads(2, "offload-test")
    results = []
    for result in threads.ahead(lambda number: number * 2, items(), window):
        results.append(result)
        assert len(taken) <= max(2, len(results) - 1 + window)
    threads.close()

    assert results == [number * 2 for number in range(count)]


@pytest.mark.parametrize(("at_once", "size"), ((1, 2), (2, 2), (4, 4), (16, 6)))
def test_stores_that_take_several_blobs_at_once_get_several(at_once, size):
    """A store with threads, such as S3, gets as many chunks as it stores at once, in eight blocks
    of memory at most; others get two.
    """
    cipher = blobs.BlobCipher(Keyring([KEY]))
    encoder = encoding.BlobEncoder(encoder_of("none"), cipher, at_once)
    key, reserved = cipher.keyring.current, memory.Memory()
    wanted = {key.digest_of([bytes([n])]): [bytes([n]) * MB] for n in range(13)}

    batches = [len(batch) for _, batch in encoder.batches(wanted, key, reserved)]

    assert batches[:-1] == [size] * (13 // size)
    assert sum(batches) == 13
    assert len(reserved._blocks) == size + 2


def test_how_many_blobs_a_store_takes_at_once(tmp_path):
    """Memory, file, and SQLite stores take one blob after another; others, one by each thread."""
    urls = ("memory://one", f"file://{tmp_path}/one", f"sqlite://{tmp_path}/one.db")
    stores = [open_store(url) for url in urls]
    assert [puts_at_once(store) for store in stores] == [1, 1, 1]
    stores[1].blobs._threads = Threads(5, "offload-test")
    assert puts_at_once(stores[1]) == 5
    stores[2].close()
