"""The cache of digests of immutable values."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from offload.content.digest_cache import DigestCache, KnownBlobs, is_immutable


def frozen(array):
    array.flags.writeable = False
    return array


WRITABLE = np.zeros(10)
VIEW_OF_WRITABLE = frozen(WRITABLE[:5])


class Bytes(bytes):
    pass


@pytest.mark.parametrize(
    ("value", "immutable"),
    (
        (b"x", True),
        ("x", True),
        (frozen(np.zeros(3)), True),
        (frozen(np.zeros(10))[2:5], True),
        (np.frombuffer(b"12345678"), True),
        (pa.table({"a": [1, 2]}), True),
        (pa.array([1, 2]), True),
        (pa.RecordBatch.from_pydict({"a": [1]}), True),
        (bytearray(b"x"), False),
        (memoryview(b"x"), False),
        (np.zeros(3), False),
        (VIEW_OF_WRITABLE, False),
        (frozen(np.frombuffer(bytearray(8))), False),
        (frozen(np.array([object()])), False),
        (Bytes(b"x"), False),
        ((1, 2), False),
        ([1], False),
        (None, False),
    ),
    ids=lambda v: type(v).__name__,
)
def test_only_immutable_values_are_cached(value, immutable):
    """Only objects that can't change are immutable; a read-only view of writable memory isn't."""
    assert is_immutable(value) is immutable


def test_only_the_same_object_is_a_hit():
    """Neither an equal object nor the same object for another serializer is a hit."""
    memo = DigestCache(5000)
    value = b"value"
    memo.remember(value, "json", 1)
    assert memo.find(value, "json") == 1
    assert memo.find(b"".join([b"val", b"ue"]), "json") is None
    assert memo.find(value, "pickle") is None
    memo.forget(value, "json")
    assert memo.find(value, "json") is None


def test_remembers_nothing_that_can_change():
    """Mutable objects aren't cached."""
    memo = DigestCache(5000)
    value = bytearray(b"x")
    memo.remember(value, "json", 1)
    assert memo.find(value, "json") is None


def test_an_array_made_writable_is_forgotten():
    """An array that becomes writable is no longer a hit."""
    memo = DigestCache(5000)
    array = frozen(np.zeros(3))
    memo.remember(array, "json", 1)
    array.flags.writeable = True
    assert memo.find(array, "json") is None
    array.flags.writeable = False
    assert memo.find(array, "json") is None


def test_size_is_bounded_least_recently_used_first_out():
    """Bytes and texts are kept alive up to a limit; the least recently used are dropped first."""
    memo = DigestCache(3 * 1200)
    values = [bytes([i]) * 100 for i in range(4)]  # about 1,157 bytes each, with an entry
    for i, value in enumerate(values[:4]):
        memo.remember(value, "json", i)
        memo.find(values[0], "json")
    memo.remember(b"z" * 100, "json", 9)
    assert memo.find(values[0], "json") == 0
    assert memo.find(values[1], "json") is None
    assert memo._used <= 3600
    memo.remember(b"y" * 3600, "json", 5)  # larger than the limit
    assert memo.find(values[0], "json") == 0


def test_short_texts_take_no_more_memory_than_the_limit():
    """The limit includes what an entry takes besides its value, which is most for short texts."""
    memo = DigestCache(1 << 20)
    for number in range(5000):
        memo.remember(f"short {number}", "json", number)
    assert 500 < len(memo._entries) <= 1 << 10


def test_a_size_of_zero_remembers_nothing():
    """A cache of size 0 stays empty."""
    memo = DigestCache(0)
    for value in (b"x", frozen(np.zeros(3))):
        memo.remember(value, "json", 1)
        assert memo.find(value, "json") is None


def test_arrays_are_not_kept_alive():
    """When an array is collected, its entry is dropped and its memory freed."""
    memo = DigestCache(5000)
    arrays = [frozen(np.zeros(1000)) for _ in range(50)]
    for array in arrays:
        memo.remember(array, "json", object())
    assert len(memo._entries) == 50
    del array, arrays
    gc.collect()
    assert not memo._entries


def test_a_new_object_at_an_old_address_is_no_hit():
    """A new object with the id of a collected one never gets the old entry."""
    memo = DigestCache(10_000)
    for i in range(2000):
        array = frozen(np.full(3, i))
        assert memo.find(array, "json") is None
        memo.remember(array, "json", i)
        assert memo.find(array, "json") == i


def test_threads_may_share_it():
    """Threads that add, find, and drop entries at once break nothing and keep the size correct."""
    memo = DigestCache(5000)
    failed = []

    def work(seed):
        try:
            for i in range(500):
                value = bytes([seed]) * (50 + i % 100)
                memo.remember(value, "json", (seed, i))
                found = memo.find(value, "json")
                assert found in (None, (seed, i))
                memo.remember(frozen(np.zeros(4)), "json", i)
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed
    assert 0 <= memo._used <= 5000


def test_a_forked_child_waits_for_no_thread_of_its_parent():
    """A child that was forked while another thread used the caches can use them at once."""
    memo, known = DigestCache(5000), KnownBlobs()

    def use():
        memo.remember(b"x", "json", 1)
        known.note(["b3:0", "b3:1"])
        assert memo.find(b"x", "json") == 1
        assert known.find("b3:0")[1] == ["b3:0", "b3:1"]

    child = multiprocessing.get_context("fork").Process(target=use)
    with ThreadPoolExecutor(1) as other:  # an RLock would let this thread in
        other.submit(memo._lock.acquire).result()
        with known._lock:
            child.start()
        other.submit(memo._lock.release).result()
    child.join(60)
    try:
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
