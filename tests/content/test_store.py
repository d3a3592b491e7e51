"""ContentStore turns a value into a Ref and back."""

from __future__ import annotations

import base64
import multiprocessing
import os
import pickle
import threading
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offload.content import encoding, get, manifest
from offload.content.holds import Hold
from offload.content.manifest import CHUNK, HEAD_LIMIT
from offload.digest import digest_of
from offload.errors import (
    BlobMissing,
    DeserializationError,
    IntegrityError,
    InvalidRef,
    SerializationError,
    SerializerNotAccepted,
    StoreUnavailable,
    ValueTooLarge,
)
from offload.stores.memory import MemoryStore
from offload.stores.tiered import TieredStore

HOUR = 3600.0
MB = 10**6


def noise(count):
    return np.random.default_rng(1).random(count)


VALUES = {
    "none": None,
    "text": "text \N{SNOWMAN} " * 1000,
    "bytes": os.urandom(5000),
    "json": {"a": [1, 2.5, None, True, {"b": "c"}]},
    "array": np.arange(1000.0).reshape(10, 100),
    "large array": noise(MB),
    "frame": pd.DataFrame({"a": [1, 2], "b": ["x", None]}),
    "table": pa.table({"a": [1, 2, None]}),
    "set": {1, 2, 3},
    "mixed": {"x": noise(200_000), "y": [noise(200_000), "z"]},
    "compressible": np.zeros(MB),
    "empty": b"",
}


def same(a, b):
    if isinstance(a, np.ndarray):
        return type(b) is np.ndarray and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, pd.DataFrame):
        return a.equals(b) and list(a.dtypes) == list(b.dtypes)
    if isinstance(a, pa.Table):
        return a.equals(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("compression", ("auto", "zstd", "none"))
@pytest.mark.parametrize("name", VALUES)
def test_every_kind_of_value_comes_back(make_parts, name, compression):
    """Another process reads an equal value from the reference's wire text alone."""
    parts = make_parts(compression=compression)
    value = VALUES[name]
    ref = parts.put(value, "pickle")
    other = parts.another().open(ref.wire)
    assert same(value, other.get())
    assert ref.size == other.size
    assert ref.type == type(value).__qualname__
    assert same(value, ref.get())


def test_each_get_is_a_private_copy(parts):
    """A receiver's changes to a value affect neither the next receiver nor the stored value."""
    ref = parts.put(np.arange(MB))
    first = ref.get()
    first[:] = 0
    assert ref.get()[5] == 5
    small = parts.put(np.arange(10))
    small.get()[:] = 0
    assert small.get()[5] == 5


# -- deduplication


def test_equal_content_takes_one_round_trip_and_no_upload(parts):
    """Storing equal content from another process takes one round trip and no upload."""
    parts.put(noise(MB))
    other = parts.another()
    _ = other.signing.keys
    parts.store.calls.clear()
    before = parts.counters.snapshot()
    other.writer.put(noise(MB), celery_serializer="json", hold=Hold(HOUR))
    after = parts.counters.snapshot()
    assert parts.store.calls == {"hold": 1}
    assert after["blobs_uploaded"] == before["blobs_uploaded"]
    assert after["values_deduplicated"] == before["values_deduplicated"] + 1


def test_compression_does_not_prevent_deduplication(make_parts):
    """A process that doesn't compress finds content that was stored compressed."""
    parts = make_parts(compression="zstd")
    parts.put(np.zeros(MB))
    plain = parts.another(compression="none")
    before = parts.counters.snapshot()["blobs_uploaded"]
    plain.writer.put(np.zeros(MB), celery_serializer="json", hold=Hold(HOUR))
    assert parts.counters.snapshot()["blobs_uploaded"] == before


def test_a_changed_column_uploads_that_column(parts):
    """Of a frame with one changed column, only the chunks with that column and the root are new.
    pandas stores columns of one type together, so it may share a chunk with its neighbors.
    """
    columns = {name: noise(MB) + i for i, name in enumerate("abcd")}
    frame = pd.DataFrame(columns)
    assert parts.uploads(frame) == 1 + 8
    changed = pd.DataFrame({**columns, "c": columns["c"] + 1})
    assert parts.uploads(changed) == 1 + 3


def test_appended_rows_upload_the_end(parts):
    """Of an array with appended rows, only the last chunk and the root are new."""
    array = noise(4 * CHUNK // 8 + 1000)
    assert parts.uploads(array) == 1 + 5
    longer = np.concatenate([array, [1.0, 2.0]])
    assert parts.uploads(longer) == 1 + 1


def test_a_root_is_stored_only_with_its_chunks(parts):
    """If the upload stops at any point, no root is stored without its chunks."""
    value = noise(12 * CHUNK // 8)
    for allowed in range(3):
        left = [allowed]

        def fail(name, *_args, left=left):
            if name == "put":
                if not left[0]:
                    raise StoreUnavailable("gone")
                left[0] -= 1

        parts.store.blobs.fail = fail
        try:
            ref = parts.another().writer.put(value, celery_serializer="json", hold=Hold(HOUR))
        except StoreUnavailable:
            roots = [b for b in parts.store.stored.values() if b.content[1:9] == b"OFFLOAD1"]
            assert not roots
        else:
            assert same(ref.get(), value)
    parts.store.blobs.fail = None
    assert same(parts.put(value).get(), value)


# -- integrity


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_changed_byte_is_noticed(make_parts, data):
    """A byte changed, removed, or added in any blob, in every storage format, makes reading raise
    IntegrityError and never return a value.
    """
    compression = data.draw(st.sampled_from(("auto", "none")), "compression")
    value = data.draw(
        st.sampled_from(("text " * 40, b"\0" * 5000, np.arange(300_000), {"a": [1] * 50})), "value"
    )
    parts = make_parts(compression=compression)
    ref = parts.put(value)
    digest = data.draw(st.sampled_from(sorted(parts.store.stored)), "blob")
    content = bytearray(parts.store.stored[digest].content)
    at = data.draw(st.integers(0, len(content) - 1), "at")
    what = data.draw(st.sampled_from(("flip", "cut", "add", "replace")), "what")
    if what == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7), "bit")
    elif what == "cut":
        del content[at:]
    elif what == "add":
        content += b"x" * (at + 1)
    else:
        content = bytearray(parts.store.stored[min(parts.store.stored)].content)
        if content == parts.store.stored[digest].content:
            return
    parts.store.replace(digest, content)
    try:
        found = parts.another().open(ref.wire).get()
    except IntegrityError as exc:
        error = exc
    else:
        # A compressed frame has bits that don't matter; only the value counts.
        assert compression == "auto"
        assert same(found, value)
        return
    assert error.digest == digest
    assert error.store == parts.store.url
    assert "s old" in str(error)
    assert repr(ref) in str(error)


@pytest.mark.parametrize("keys", ([], ["aes256:" + base64.b64encode(bytes(32)).decode()]))
def test_a_blob_that_only_seems_encrypted_was_altered(make_parts, keys):
    """A wrong first byte that says "encrypted" raises IntegrityError, not KeyUnavailable, with and
    without encryption keys.
    """
    parts = make_parts(compression="none", secret="s" * 32)
    ref = parts.put(np.arange(300_000))
    reader = parts.another(secret="s" * 32, encryption_keys=keys)
    for digest in sorted(parts.store.stored):
        content = bytes(parts.store.stored[digest].content)
        parts.store.replace(digest, b"\x02" + content[1:])
        with pytest.raises(IntegrityError) as caught:
            reader.open(ref.wire).get()
        assert caught.value.digest == digest
        parts.store.replace(digest, content)
    assert same(reader.open(ref.wire).get(), np.arange(300_000))


def test_swapped_blobs_are_noticed(parts):
    """A valid blob of another value isn't accepted in place of this one's."""
    one, two = parts.put("one " * 100), parts.put("two " * 100)
    content = parts.store.stored[two.digest].content
    parts.store.replace(one.digest, content)
    with pytest.raises(IntegrityError, match="altered in the store memory://test"):
        one.get()


def test_an_altered_blob_that_is_too_large_is_refused_before_it_is_read(parts):
    """A blob that was replaced by a huge one costs no memory."""
    ref = parts.put("text " * 100)
    parts.store.replace(ref.digest, bytes(manifest.ROOT_LIMIT + 100))
    tracemalloc.start()
    with pytest.raises(IntegrityError, match="s old"):
        parts.another().open(ref.wire).get()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MB


@pytest.mark.parametrize("which", ("root", "chunk"))
def test_the_error_for_a_missing_blob(parts, which):
    """BlobMissing names the blob, the store, the reference's age, and possible reasons."""
    ref = parts.put(noise(MB))
    chunk = next(d for d in parts.store.stored if d != ref.digest)
    gone = ref.digest if which == "root" else chunk
    del parts.store.stored[gone]
    parts.clock.now += 120
    with pytest.raises(
        BlobMissing, match=r"is not in the store memory://test.* 120 s old"
    ) as error:
        parts.another().open(ref.wire).get()
    assert error.value.digest == gone
    assert error.value.store == "memory://test"
    assert "offload_retention" in str(error.value)
    assert not parts.slept


def test_a_value_read_costs_one_round_trip_per_step(parts):
    """Reading a small value takes one round trip; a large one takes one for the root and one for
    all chunks.
    """
    small, large = parts.put("x" * 5000), parts.put(noise(MB))
    parts.store.calls.clear()
    small.get()
    assert parts.store.calls == {"get": 1}
    parts.store.calls.clear()
    large.get()
    assert parts.store.calls == {"get": 2}


# -- limits


def test_a_value_over_the_maximum_size_is_not_stored(make_parts):
    """A value over offload_max_size is refused by its size before anything is hashed."""
    parts = make_parts(max_size=10_000)
    with pytest.raises(ValueTooLarge, match=r"10\.0 kB"):
        parts.put(b"x" * 10_001)
    assert not parts.store.stored
    parts.put(b"x" * 9_000)


def test_a_value_over_the_maximum_size_is_not_fetched(make_parts):
    """A reader with a smaller limit refuses by the size in the reference."""
    parts = make_parts()
    ref = parts.put(b"x" * 20_000)
    reader = parts.another(max_size=10_000)
    opened = reader.open(ref.wire)
    parts.store.calls.clear()
    with pytest.raises(ValueTooLarge, match="offload_max_size"):
        opened.get()
    with pytest.raises(ValueTooLarge, match="offload_max_size"):
        list(reader.reader.get_all([opened, reader.open(parts.put(b"y" * 20_000).wire)]))
    assert "get" not in parts.store.calls


def test_a_serializer_that_is_not_accepted_fetches_nothing(make_parts):
    """A value that needs pickle is refused by its serializer's name if pickle isn't accepted."""
    parts = make_parts()
    ref = parts.put({1, object}, "pickle")
    assert ref.serializer == "pickle"
    opened = parts.another(accept=("json",)).open(ref.wire)
    parts.store.calls.clear()
    with pytest.raises(SerializerNotAccepted, match=r"pickle.*accept_content or offload_accept"):
        opened.get()
    assert not parts.store.calls


def test_an_unknown_serializer_fetches_nothing(parts):
    """A reference with an unknown serializer raises a typed error."""
    keys = parts.content.signing.keys
    ref = keys.sign(digest=digest_of([b""]), data=None, size=1, serializer="vax",
                    type="", created=0, until=0)  # fmt: skip
    opened = parts.content.open(ref.wire)
    parts.store.calls.clear()
    with pytest.raises(DeserializationError, match="vax"):
        opened.get()
    assert not parts.store.calls


def test_a_reference_of_another_size_than_its_content_is_refused(parts):
    """Size and serializer in the reference must match the stored content."""
    ref = parts.put("x" * 5000)
    fields = {"digest": ref.digest, "data": None, "size": ref.size, "serializer": ref.serializer,
              "type": "", "created": 0, "until": 0}  # fmt: skip
    for change in ({"size": 2**40}, {"size": 0}, {"serializer": "json"}):
        wrong = parts.content.signing.keys.sign(**{**fields, **change})
        with pytest.raises((IntegrityError, ValueTooLarge)):
            parts.content.open(wrong.wire).get()


def test_a_value_that_cannot_be_serialized_stores_nothing(parts):
    """A value that can't be serialized stores nothing, not even the signing key, and makes no round
    trip.
    """
    for value in (threading.Lock(), [1, threading.Lock()], (i for i in "x")):
        with pytest.raises(SerializationError):
            parts.put(value)
    assert not parts.store.stored
    assert not parts.store.calls


# -- cached digests


@pytest.fixture
def hashed(monkeypatch):
    """Return how many digests were computed of how many bytes."""
    sizes = []

    def counting(parts_of, key=None, **threads):
        parts_of = list(parts_of)
        sizes.append(sum(map(len, parts_of)))
        return digest_of(parts_of, key, **threads)

    for module in (encoding, manifest):
        monkeypatch.setattr(module, "digest_of", counting)
    return sizes


def frozen(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "value",
    (b"x" * 50_000, "x" * 50_000, frozen(noise(MB)), pa.table({"a": noise(MB)})),
    ids=("bytes", "str", "read-only array", "table"),
)
def test_immutable_values_are_not_hashed_again(parts, hashed, value):
    """Storing the same immutable object again takes one round trip and no hashing."""
    first = parts.put(value)
    hashed.clear()
    parts.store.calls.clear()
    again = parts.put(value)
    assert not hashed
    assert parts.store.calls == {"hold": 1}
    assert again.digest == first.digest
    assert parts.counters.snapshot()["values_remembered"] == 1
    assert same(again.get(), value)


@pytest.mark.parametrize(
    "make",
    (lambda: noise(MB), lambda: noise(MB)[10:], lambda: bytearray(50_000), lambda: ["x" * 50_000],
     lambda: frozen(np.array([["inner"]] * 5000 + [0], dtype=object)[:-1])),
    ids=("array", "view", "bytearray", "list", "objects"),
)  # fmt: skip
def test_mutable_values_are_hashed_again(parts, hashed, make):
    """A writable value is hashed every time, and changes are noticed."""
    value = make()
    first = parts.put(value, "pickle")
    hashed.clear()
    if isinstance(value, np.ndarray) and value.dtype == object:
        value[0].append("changed")
    else:
        value[0] = value[1] if isinstance(value, np.ndarray) else 7
    again = parts.put(value, "pickle")
    assert hashed
    assert again.digest != first.digest


def test_a_missing_value_with_a_cached_digest_is_stored_again(parts):
    """A cached digest is no proof that the blobs exist: the store is asked each time."""
    value = b"x" * 50_000
    ref = parts.put(value)
    parts.store.stored.clear()
    again = parts.put(value)
    assert again.get() == value
    assert again.digest == ref.digest


# -- lifetimes


def test_passing_on_a_fresh_reference_costs_nothing(parts):
    """A reference that was put for long enough is passed on without a round trip; if blobs may be
    released, they are held.
    """
    ref = parts.put(noise(MB), ttl=HOUR)
    parts.store.calls.clear()
    parts.content.holds.add([ref], Hold(HOUR, "task:1"))
    assert not parts.store.calls
    other = parts.another()
    opened = other.open(ref.wire)
    parts.store.calls.clear()
    other.holds.add([opened], Hold(HOUR, "task:1"))
    other.holds.add([opened], Hold(HOUR, "task:2"))
    assert parts.store.calls == {"get": 1, "hold": 2}


def test_passing_on_an_old_reference_extends_all_blobs(parts):
    """After that, every blob of the value is extended, in one round trip if the chunks are known,
    else in two.
    """
    ref = parts.put(noise(MB), ttl=HOUR)
    for content, calls in (
        (parts.content, {"hold": 1}),
        (parts.another(), {"get": 1, "hold": 1}),
    ):
        parts.clock.now += 2000
        opened = content.open(ref.wire)
        parts.store.calls.clear()
        content.holds.add([opened], Hold(HOUR, "task:1"))
        assert parts.store.calls == calls
    parts.clock.now += HOUR + 59
    assert same(parts.another().open(ref.wire).get(), noise(MB))
    assert len(parts.store.stored) == 3


def test_a_missing_value_cannot_be_passed_on(parts):
    """Passing on a reference to missing content fails for the sender."""
    ref = parts.put(noise(MB), ttl=HOUR)
    parts.clock.now += 2 * HOUR
    with pytest.raises(BlobMissing, match="7200 s old"):
        parts.content.holds.add([ref], Hold(HOUR, "task:1"))
    with pytest.raises(BlobMissing):
        parts.another().holds.add([ref], Hold(HOUR, "task:1"))


def test_a_value_in_a_removed_store_is_not_reported_as_missing(parts):
    """Passing on a reference to a store that was removed names the store to add again."""
    lower, first = MemoryStore("lower", clock=parts.clock), parts.store.raw
    parts.store = TieredStore(first, [lower], (1000,))
    ref = parts.another().writer.put(noise(MB), celery_serializer="json", hold=Hold(HOUR, "task:1"))
    for parts.store in (TieredStore(first, [MemoryStore("other")], (1000,)), first):
        with pytest.raises(StoreUnavailable, match=r"is in memory://lower.*add it") as caught:
            parts.another().holds.add([ref], Hold(HOUR, "task:2"))
        assert caught.value.digest in {info.digest for info in lower.blobs.scan()}


def test_a_value_within_its_reference_needs_no_store(make_parts):
    """A small value is contained in the reference: reading and holding it takes no store call."""
    parts = make_parts(secret="a secret of enough length")
    value = {1, 2}
    payload = parts.content.serializers.encode(value, "json")
    ref = parts.content.writer.inline_ref(payload)
    other = parts.another(secret="a secret of enough length")
    opened = other.open(ref.wire)
    other.holds.add([opened], Hold(HOUR, "task:1"))
    assert opened.get() == value
    assert not parts.store.calls


# -- an unavailable store


def test_an_unavailable_store_is_retried(parts):
    """Reading and writing succeed when the store is back; each retry is counted."""
    ref = parts.put("x" * 5000)
    failures = [2]

    def fail(*_args):
        if failures[0]:
            failures[0] -= 1
            raise StoreUnavailable("away")

    parts.store.blobs.fail = fail
    assert ref.get() == "x" * 5000
    failures[0] = 3
    parts.put("y" * 5000)
    assert len(parts.slept) == 5
    assert parts.counters.snapshot()["store_retries"] == 5


def test_a_store_that_stays_unavailable_is_an_error(parts):
    """The store is retried as often as configured, however many values are read together."""
    refs = [parts.put("x" * 5000), parts.put("z" * 5000)]

    def fail(*_args):
        raise StoreUnavailable("away")

    parts.store.blobs.fail = parts.store.pointers.fail = fail
    for call in (
        refs[0].get,
        lambda: list(parts.content.reader.get_all(refs)),
        lambda: parts.put("y" * 5000),
        lambda: parts.another().open(refs[0].wire),
    ):
        parts.slept.clear()
        with pytest.raises(StoreUnavailable, match="away"):
            call()
        assert len(parts.slept) == 3


# -- keys


def test_processes_agree_on_a_key_after_the_store_was_emptied(parts):
    """When the key is lost with all other data, processes with the old key and with a new one agree
    again without a restart.
    """
    publisher, worker = parts.content, parts.another()
    worker.open(publisher.writer.put("x" * 5000, celery_serializer="json", hold=Hold(HOUR)).wire)
    parts.store.stored.clear()
    parts.store.raw.pointers._values.clear()
    newcomer = parts.another()
    _ = newcomer.signing.keys
    parts.clock.now += 120
    ref = publisher.writer.put("y" * 5000, celery_serializer="json", hold=Hold(HOUR))
    assert newcomer.open(ref.wire).get() == "y" * 5000
    assert worker.open(ref.wire).get() == "y" * 5000
    ref = newcomer.writer.put("z" * 5000, celery_serializer="json", hold=Hold(HOUR))
    assert worker.open(ref.wire).get() == "z" * 5000
    assert publisher.open(ref.wire).get() == "z" * 5000


def test_forged_references_do_not_make_round_trips(parts):
    """Forged references, however many, cause almost no round trips, and are counted."""
    wire = parts.put("x" * 5000).wire[:-1] + "!"
    forged = parts.put("x" * 5000).wire[:-4] + "0000"
    parts.store.calls.clear()
    parts.clock.now += 5
    for text in [wire, forged] * 50:
        with pytest.raises(InvalidRef):
            parts.content.open(text)
    assert sum(parts.store.calls.values()) <= 1
    assert parts.counters.snapshot()["refs_refused"] == 100


# -- processes and threads


def in_child(function):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def run():
        try:
            queue.put(("ok", function()))
        except BaseException as exc:
            queue.put(("failed", repr(exc)))

    child = context.Process(target=run)
    child.start()
    outcome = queue.get(timeout=30)
    child.join(30)
    return outcome


def test_works_after_a_fork(parts):
    """A content store used before a fork works in child and parent."""
    ref = parts.put(noise(MB))
    assert in_child(lambda: same(ref.get(), noise(MB))) == ("ok", True)
    assert in_child(lambda: parts.put("in child " * 1000).get()) == ("ok", "in child " * 1000)
    assert same(ref.get(), noise(MB))


@pytest.mark.server
def test_works_after_a_fork_over_redis(redis):
    """Over a server, too, parent and children work, and share no connection."""
    from offload.content.store import ContentStore
    from offload.metrics.counters import Counters
    from offload.serializers.choose import Registry
    from offload.settings import Settings
    from offload.stores import open_store

    content = ContentStore(
        open_store(f"{redis.url}?prefix=fork"), Registry(["json"]), Settings(), Counters()
    )
    ref = content.writer.put(noise(MB), celery_serializer="json", hold=Hold(60))
    for _ in range(3):
        assert in_child(lambda: same(ref.get(), noise(MB))) == ("ok", True)
        assert same(ref.get(), noise(MB))
        wire = in_child(
            lambda: content.writer.put("x" * 50_000, celery_serializer="json", hold=Hold(60)).wire
        )
        assert content.open(wire[1]).get() == "x" * 50_000


def test_threads_may_share_it(parts):
    """Threads that put and get at once get what they put."""
    failed = []

    def work(seed):
        try:
            for i in range(20):
                value = bytes([seed]) * (40_000 + i)
                assert parts.put(value).get() == value
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(n % 3,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed


def test_no_secret_is_shown(make_parts):
    """Neither a reference nor an error shows the secret."""
    parts = make_parts(secret="a secret of enough length")
    ref = parts.put("x" * 5000)
    assert "enough" not in repr(ref) + repr(parts.settings) + ref.wire
    with pytest.raises(InvalidRef) as error:
        parts.another(secret="another secret, long enough").open(ref.wire)
    assert "enough" not in str(error.value)
    assert b"enough" not in pickle.dumps(ref)


# -- several values at once


def test_small_values_are_fetched_together(make_parts, monkeypatch):
    """Values are read in batches bounded in bytes, each in order."""
    parts = make_parts()
    monkeypatch.setattr(get, "_BATCH_BYTES", 3 * 10_000)
    values = [bytes([n]) * 10_000 for n in range(7)]
    values[3] = noise(MB)  # large: read separately, without delaying small values around it
    refs = [parts.put(value) for value in values]
    other = parts.another()
    opened = [other.open(ref.wire) for ref in refs]
    found = other.reader.get_all(opened)
    parts.store.calls.clear()
    parts.store.blobs.asked.clear()
    assert next(found) == values[0]
    assert parts.store.calls == {"get": 1}, "what comes later is not read yet"
    assert all(map(same, [values[0], *found], values))
    together = [len(d) for _, d, limit in parts.store.blobs.asked if HEAD_LIMIT < limit < MB]
    assert together == [2, 2]  # each batch of three would be over the limit: they have heads
    assert parts.counters.snapshot()["values_fetched"] == 7


def test_equal_references_are_read_once_and_not_shared(parts):
    """Equal references in a batch are read once; each receiver gets its own value."""
    ref = parts.put(np.arange(100))
    more = parts.put(b"x" * 5000)
    parts.store.blobs.asked.clear()
    first, _, second = parts.another().reader.get_all([ref, more, ref])
    first[:] = 0
    assert second[5] == 5
    assert [len(digests) for _, digests, _ in parts.store.blobs.asked] == [2]


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("fault", ("missing", "altered"))
def test_a_bad_value_does_not_affect_others_in_its_batch(parts, position, fault):
    """Values before a bad one in a batch arrive, and its own reference raises."""
    values = [bytes([n]) * 5000 for n in range(3)]
    refs = [parts.put(value) for value in values]
    digest = refs[position].digest
    if fault == "missing":
        parts.store.raw.blobs.delete([digest])
    else:
        parts.store.replace(digest, b"\x00" + b"y" * 5000)
    found = parts.content.reader.get_all(refs)
    for value in values[:position]:
        assert next(found) == value
    with pytest.raises(BlobMissing if fault == "missing" else IntegrityError) as caught:
        next(found)
    assert caught.value.digest == digest


def test_batches_apply_the_same_checks(make_parts):
    """Refused serializers and sizes are refused in a batch, too."""
    parts = make_parts()
    refs = [parts.put({"a": 1}), parts.put({1, 2}, "pickle")]
    strict = parts.another(accept=("json",))
    found = strict.reader.get_all([strict.open(ref.wire) for ref in refs])
    assert next(found) == {"a": 1}
    with pytest.raises(SerializerNotAccepted):
        next(found)
