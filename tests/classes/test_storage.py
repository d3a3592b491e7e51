"""Storage of versions."""

from __future__ import annotations

import random
from dataclasses import replace

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offload.classes.versions import LARGEST, LATEST, PointerNames, Record, Storage, StoredVersion
from offload.digest import digest_of
from offload.errors import CodeRefused, SerializationError
from offload.stores import open_store
from offload.stores.checks import MAX_POINTER
from offload.stores.memory import MemoryStore
from tests.classes.conftest import separate_processes

HASH = "0123456789abcdef" * 4
OTHER = HASH[::-1]
NAMES = PointerNames("shop.Filter")
ANY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
VERSION = NAMES.version(HASH)


def version(content, source=b"", *, name="shop.Filter", code_hash=HASH, created=1.0, **more):
    record = Record(
        class_name=name,
        hash=code_hash,
        digest=digest_of([content]),
        size=len(content),
        python="cpython-311",
        kind="class",
        created=created,
        source=digest_of([source]) if source else "",
        source_size=len(source),
    )
    return StoredVersion(replace(record, **more), content, source)


def written(record, content=b"", length=None):
    """Return the content of a pointer as a version."""
    tail = record if isinstance(record, bytes) else record.to_bytes()
    return content + tail + (len(tail) if length is None else length).to_bytes(4, "big")


def storage_of(store):
    return Storage(store.pointers, lambda call: call())


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


@pytest.fixture
def storage(store):
    return storage_of(store)


@pytest.mark.parametrize(
    ("size", "source"),
    ((0, 0), (10, 0), (10, 10), (60_000, 10_000), (65_536, 0), (200_000, 70_000)),
)
def test_a_version_is_read_back(store, storage, size, source):
    """A version, even with several pointers, is read as stored, and stored only once."""
    stored = version(noise(size), noise(source, 2))
    assert storage.get([("shop.Filter", HASH)]) == [None]
    assert storage.put(stored)
    assert not storage.put(stored)
    assert storage.get([("shop.Filter", HASH)]) == [stored]
    pointers = set(store.pointers.names())
    assert VERSION in pointers
    assert (len(pointers) == 1) == (size + source < MAX_POINTER - 1000)
    assert storage.records(NAMES) == [stored.record]
    assert storage.hashes(NAMES) == [HASH]


def test_many_at_once(storage):
    """Versions are read in the requested order, also if some are missing."""
    stored = [version(noise(i * 50_000, i), code_hash=f"{i:064x}", created=-i) for i in range(4)]
    for each in stored:
        storage.put(each)
    asked = [("shop.Filter", f"{i:064x}") for i in (2, 9, 0, 3)]
    assert storage.get(asked) == [stored[2], None, stored[0], stored[3]]
    assert storage.get([]) == []
    assert storage.records(NAMES) == [each.record for each in stored[::-1]]


def test_the_largest(memory):
    """A version over the limit is refused with a hint before anything is stored."""
    storage = storage_of(memory)
    with pytest.raises(SerializationError, match=r"shop.Filter has 16777217 bytes.*an argument\?"):
        storage.put(version(bytes(LARGEST), b"x"))
    needs = tuple((f"shop.{i}", HASH) for i in range(1000))
    with pytest.raises(SerializationError, match="too many other classes"):
        storage.put(version(b"x", needs=needs))
    assert list(memory.pointers.names()) == []
    assert storage.put(version(bytes(LARGEST)))
    [stored] = storage.get([("shop.Filter", HASH)])
    assert len(stored.content) == LARGEST


def test_a_version_is_complete_or_missing(memory):
    """No matter when a writer dies, the version is complete or missing, and can be stored again."""

    class Dying(Exception):
        pass

    class Pointers:
        left = 0

        def swap(self, *args):
            if self.left == 0:
                raise Dying
            self.left -= 1
            return memory.pointers.swap(*args)

        def __getattr__(self, name):
            return getattr(memory.pointers, name)

    stored = version(noise(300_000))
    dying = Pointers()
    storage = Storage(dying, lambda call: call())
    steps = 0
    while True:
        dying.left = steps
        try:
            storage.put(stored)
            break
        except Dying:
            assert storage.get([("shop.Filter", HASH)]) == [None]
            steps += 1
    assert steps == 5
    assert storage.get([("shop.Filter", HASH)]) == [stored]


def test_a_version_is_replaced_by_compare_and_swap(memory):
    """A version is replaced only by compare-and-swap."""
    storage = storage_of(memory)
    old, new = version(b"old"), version(noise(100_000))
    storage.put(old)
    there = memory.pointers.read(VERSION)
    assert not storage.put(new, b"something else")
    assert storage.get([("shop.Filter", HASH)]) == [old]
    assert storage.put(new, there)
    assert not storage.put(old, there)
    assert storage.get([("shop.Filter", HASH)]) == [new]


def test_an_altered_part_is_repaired(memory):
    """Storing a version again repairs an altered part."""
    storage = storage_of(memory)
    stored = version(noise(200_000))
    storage.put(stored)
    part = NAMES.more(HASH, stored.record.digest, 2)[0]
    memory.pointers.swap(part, memory.pointers.read(part), b"evil")
    with pytest.raises(CodeRefused, match="altered"):
        storage.get([("shop.Filter", HASH)])
    storage.put(stored, memory.pointers.read(VERSION))
    assert storage.get([("shop.Filter", HASH)]) == [stored]


GOOD = version(b"content", b"source")


@pytest.mark.parametrize(
    ("content", "message"),
    (
        (b"", "isn't a version"),
        (b"abc", "isn't a version"),
        (b"\0\0\0\0", "isn't a class record"),
        (b"\xff\xff\xff\xff", "isn't a version"),
        (written(b"{}"), "isn't a class record"),
        (written(GOOD.record, b"contentsource", length=5000), "isn't a version"),
        (written(GOOD.record, b"contentsource", length=5), "isn't a class record"),
        (written(GOOD.record, b"c0ntentsource"), "altered"),
        (written(GOOD.record, b"contents0urce"), "altered"),
        (written(GOOD.record, b"sourcecontent"), "altered"),
        (written(GOOD.record, b"content"), "altered"),
        (written(GOOD.record, b"contentsource."), "altered"),
        (written(GOOD.record, b""), "altered"),
        (written(replace(GOOD.record, source=""), b"contentsource"), "altered"),
        (written(replace(GOOD.record, size=6, source_size=7), b"contentsource"), "altered"),
        (written(replace(GOOD.record, class_name="shop.Other"), b"contentsource"), "another"),
        (written(replace(GOOD.record, hash=OTHER), b"contentsource"), "another"),
        (written(replace(GOOD.record, purpose=LATEST), b"contentsource"), "another"),
        (written(replace(GOOD.record, size=1 << 31), b"contentsource"), "2147483654 bytes"),
        (written(replace(GOOD.record, size=LARGEST), b"contentsource"), "bytes; the limit is"),
        (written(replace(GOOD.record, size=LARGEST - 6), b"contentsource"), "altered"),
    ),
)
def test_an_invalid_version(memory, content, message):
    """Anything else in a version's place is refused with its kind and location."""
    memory.pointers.swap(VERSION, None, content)
    with pytest.raises(CodeRefused, match=message) as caught:
        storage_of(memory).get([("shop.Filter", HASH)])
    assert "shop.Filter" in str(caught.value)


class TestHostile:
    """Reading arbitrary pointers returns a complete version or raises CodeRefused."""

    @ANY
    @given(st.binary(max_size=200))
    def test_bytes(self, content):
        """Arbitrary bytes in a pointer."""
        self.read(content)

    @ANY
    @given(
        st.binary(max_size=50),
        st.dictionaries(
            st.sampled_from(sorted(orjson.loads(GOOD.record.to_bytes()))),
            st.none()
            | st.integers(-1, 1 << 64 - 1)
            | st.text(max_size=70)
            | st.lists(st.text(max_size=10), max_size=3),
            max_size=4,
        ),
        st.integers(-3, 3),
    )
    def test_records(self, content, changed, longer):
        """Records whose fields or length were changed."""
        record = orjson.dumps({**orjson.loads(GOOD.record.to_bytes()), **changed})
        self.read(written(record, content, len(record) + longer))

    @ANY
    @given(st.integers(0, 800), st.integers(1, 255))
    def test_one_byte(self, at, changed):
        """A valid version with one changed byte."""
        content = bytearray(written(GOOD.record, b"contentsource"))
        content[at % len(content)] ^= changed
        found = self.read(bytes(content))
        assert found is None or (found.content, found.source) == (b"content", b"source")

    @staticmethod
    def read(content):
        memory = MemoryStore()
        memory.pointers.swap(VERSION, None, content)
        storage = storage_of(memory)
        try:
            [found] = storage.get([("shop.Filter", HASH)])
        except CodeRefused:
            found = None
        else:
            assert (found.record.class_name, found.record.hash) == ("shop.Filter", HASH)
            assert digest_of([found.content]) == found.record.digest
        assert len(storage.read_records([VERSION])) == 1
        return found


def put_in_process(url, seed, gate, queue):
    storage = storage_of(open_store(url))
    stored = version(noise(200_000, seed), source=noise(seed, seed))
    gate.wait(60)
    queue.put((seed, storage.put(stored), storage.get([("shop.Filter", HASH)])))


def test_processes_that_store_the_same_version_at_once(url):
    """Of processes that store different bytes for one version, one succeeds, and all read its
    complete version.
    """
    context = separate_processes()
    gate, queue = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=put_in_process, args=(url, seed, gate, queue)) for seed in range(4)
    ]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    [winner] = [seed for seed, stored, _ in answers if stored]
    expected = version(noise(200_000, winner), source=noise(winner, winner))
    assert all(found == [expected] for _, _, found in answers)
