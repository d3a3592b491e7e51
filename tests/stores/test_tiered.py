"""Properties of tiered stores: where blobs are stored, and when they are deleted."""

from __future__ import annotations

import logging
import os
import random
import sys

import pytest

from offload import Counters
from offload.errors import BlobMissing, ConfigurationError, StoreUnavailable
from offload.stores import open_store
from offload.stores.file import FileStore
from offload.stores.memory import MemoryStore
from offload.stores.redis import blobs as redis_blobs
from offload.stores.tiered import TieredStore
from offload.testing.store import HOUR, FakeClock, blobs, contents, scanned, swept
from tests.support.moto_s3 import moto_s3
from tests.support.processes import wait_until
from tests.support.round_trips import Wire

KIB = 1024
LARGE = 100 * KIB


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def first(clock):
    return MemoryStore("first", clock=clock)


@pytest.fixture
def lower(clock):
    with moto_s3(clock, skew=1, ahead=1) as store:
        yield store


@pytest.fixture
def store(first, lower, clock):
    return TieredStore(first, [lower], clock=clock)


@pytest.fixture
def requests(lower, monkeypatch):
    """Return the names of the requests that S3 gets."""
    made = []
    ask = lower.client.ask

    def counted(operation, *args, **options):
        made.append(operation)
        return ask(operation, *args, **options)

    monkeypatch.setattr(lower.client, "ask", counted)
    return made


def put(store, many, ttl=HOUR, holder="task:1", size=1024 * KIB):
    """Store blobs of a large value as a publisher does; return the digests that were missing."""
    missing = store.blobs.hold(list(many), ttl, holder)
    if missing:
        store.blobs.put({digest: many[digest] for digest in missing}, ttl, value_size=size)
    return missing


def there(store):
    return {info.digest for info in store.blobs.scan()}


def before(monkeypatch, target, name, action):
    """Run *action* once, just before *name* of *target* is called."""
    real = getattr(target, name)

    def call(*args, **options):
        monkeypatch.setattr(target, name, real)
        action()
        return real(*args, **options)

    monkeypatch.setattr(target, name, call)


def after(monkeypatch, target, name, action):
    """Run *action* once, just after *name* of *target* was called."""
    real = getattr(target, name)

    def call(*args, **options):
        monkeypatch.setattr(target, name, real)
        result = real(*args, **options)
        action()
        return result

    monkeypatch.setattr(target, name, call)


# ------------------------------------------------------------------ choice of tier


def test_a_values_size_chooses_the_tier(clock):
    """Blobs are stored in the tier for their value's size, small blobs always in the first."""
    tiers = [MemoryStore(name, clock=clock) for name in "abc"]
    store = TieredStore(tiers[0], tiers[1:], (200 * KIB, 1000 * KIB))
    small, large = blobs(2, 64 * KIB - 1), blobs(2, 64 * KIB)
    for size, at in ((199, 0), (200, 1), (999, 1), (1000, 2), (5000, 2)):
        store.blobs.put({**small, **large}, HOUR, value_size=size * KIB)
        assert [there(tier) for tier in tiers[1:]] == [
            set(large) if at == number else set() for number in (1, 2)
        ]
        assert there(tiers[0]) == {*small, *(large if at == 0 else ())}
        assert contents(store, [*small, *large]) == [
            x for (x,) in [*small.values(), *large.values()]
        ]
        store.blobs.delete([*small, *large])


def test_without_a_value_a_blobs_own_size_decides(store, first, lower):
    """A blob whose value's size is unknown is stored by its own size."""
    small, large = blobs(1, 1024 * KIB - 1), blobs(1, 1024 * KIB)
    store.blobs.put({**small, **large}, HOUR)
    assert (there(first), there(lower)) == (set(small), set(large))


def test_pointers_and_leases_are_in_the_first_tier(store, first, lower, requests):
    """A lower tier has blobs only."""
    assert store.pointers.swap("p", None, b"1")
    assert store.leases.acquire("l", "me", 10)
    assert first.pointers.read("p") == b"1"
    assert requests == []


def test_a_blob_that_is_in_the_first_tier_is_not_stored_again(store, first, lower):
    """A blob that a smaller value has stored stays in its tier."""
    many = blobs(1, LARGE)
    assert put(store, many, size=LARGE) == set(many)
    assert put(store, many) == set()
    store.blobs.put(many, HOUR, value_size=5000 * KIB)
    assert (there(first), there(lower)) == (set(many), set())


def test_reading_keeps_the_order_over_tiers(store, first, lower, monkeypatch):
    """Blobs are yielded in the requested order, whatever their tiers, after one lookup."""
    low, high = blobs(4, LARGE), blobs(4, 10)
    put(store, low)
    put(store, high)
    many = {**low, **high}
    order = random.Random(1).choices(list(many), k=30)
    asked = []
    find = store.index.find
    monkeypatch.setattr(store.index, "find", lambda digests: asked.append(1) or find(digests))
    assert contents(store, order) == [many[digest][0] for digest in order]
    assert asked == [1]


def test_a_tier_is_known_however_it_is_reached(first, lower, clock):
    """Another endpoint of the same bucket, and another order of tiers, are the same tiers."""
    other = MemoryStore("other", clock=clock)
    many = blobs(2, LARGE)
    put(TieredStore(first, [other, lower], (1, 1000 * KIB), clock=clock), many)
    lower.url += "?endpoint_url=http://elsewhere"
    again = TieredStore(first, [lower, other], (1000 * KIB, 2000 * KIB), clock=clock)
    assert contents(again, many) == [content for (content,) in many.values()]
    assert again.blobs.hold(list(many), HOUR, "task:2") == set()


@pytest.mark.parametrize(
    ("urls", "sizes", "message"),
    (
        (["file:///x", "memory://a"], None, "file:///x can't be the first.*put a Redis before"),
        (["s3://bucket/x", "redis://a"], None, "can't be the first"),
        (["memory://a", "memory://a"], None, "memory://a is listed twice"),
        (["redis://a", "file:///x", "file:///x"], (1, 2), "file:///x is listed twice"),
        (["redis://a", "s3://b?region=x", "s3://b?region=y"], (1, 2), "s3://b is listed twice"),
        (["memory://a", "memory://b", "memory://c"], None, "3 stores need 2 sizes .* not 1"),
        (["memory://a", "memory://b"], (1, 2), "2 stores need 1 sizes .* not 2"),
        (["memory://a", "memory://b", "memory://c"], (2, 2), "must be ascending"),
        (["memory://a", "memory://b"], (0,), "must be ascending"),
        ([], None, "not an empty list"),
    ),
)
def test_invalid_tiers_are_refused(urls, sizes, message):
    """Tiers that can't work together are refused with a reason."""
    with pytest.raises(ConfigurationError, match=message):
        open_store(urls, tier_sizes=sizes)


def test_a_tier_alone_is_no_store(first):
    """A tiered store of only one store raises ConfigurationError."""
    with pytest.raises(ConfigurationError, match="at least two"):
        TieredStore(first, [])


def test_options_belong_to_one_url():
    """Options for one of several stores belong in its URL."""
    with pytest.raises(ConfigurationError, match="prefix: with several stores, pass options"):
        open_store(["redis://a", "redis://b"], prefix="x")


def test_credentials_are_not_shown():
    """Neither the URL of several stores nor the tier index contains secrets."""
    store = open_store(["redis://:secret@a/1?prefix=p", "s3://key:secret@b/p?region=x"])
    assert store.url == "redis://a/1?prefix=p + s3://b/p"
    assert [tier.name for tier in store._lower] == ["s3://b/p"]


# ------------------------------------------------------------------ cost


@pytest.mark.server
def test_a_deduplicated_publish_is_one_round_trip(redis, lower, requests, monkeypatch):
    """Holding stored blobs takes one round trip to Redis and none to S3."""
    store = TieredStore(open_store(redis.url, prefix=os.urandom(4).hex()), [lower])
    many = {**blobs(25, LARGE), **blobs(1, 100)}
    put(store, many)
    assert set(requests) == {"put_object"}
    assert len(requests) == 25
    store.blobs.hold(list(many), HOUR / 2, "task:2")
    store.blobs.release(list(many), "task:2", 60)  # it has the scripts from here on
    requests.clear()
    wire = Wire(monkeypatch)
    assert put(store, many, HOUR / 2, "task:3") == set()
    assert (wire.trips, requests) == (1, [])
    store.blobs.release(list(many), "task:3", 60)
    assert (wire.trips, requests) == (2, [])
    store.close()


@pytest.mark.server
def test_a_root_is_read_in_one_round_trip(redis, lower, requests, monkeypatch):
    """A blob in the first tier is read without a lookup."""
    store = TieredStore(open_store(redis.url, prefix=os.urandom(4).hex()), [lower])
    root, chunks = blobs(1, 100), blobs(3, LARGE)
    put(store, {**root, **chunks})
    contents(store, chunks)
    requests.clear()
    wire = Wire(monkeypatch)
    assert contents(store, root) == [next(iter(root.values()))[0]]
    assert (wire.trips, requests) == (1, [])
    contents(store, chunks)
    assert (wire.trips, requests) == (2, ["get_object"] * 3)
    store.close()


def test_a_longer_hold_extends_the_lower_tiers_lifetime(clock, first, requests, lower):
    """A hold that lasts longer than the lower tier's lifetime extends that, once."""
    store = TieredStore(first, [lower], clock=clock)
    many = blobs(1, LARGE)
    put(store, many, HOUR)
    requests.clear()
    clock.advance(60)
    assert store.blobs.hold(list(many), 2 * HOUR - 60, "task:2") == set()
    assert requests == []
    assert store.blobs.hold(list(many), 2 * HOUR, "task:3") == set()
    assert requests == ["head_object", "copy_object"]
    requests.clear()
    clock.advance(HOUR)
    assert store.blobs.hold(list(many), 3 * HOUR, "task:4") == set()
    assert requests == []
    clock.advance(3 * HOUR - 1)
    assert swept(store) == 0
    assert contents(store, many) == [content for (content,) in many.values()]


def test_a_sweep_makes_no_request_for_needed_objects(store, requests, lower):
    """A sweep lists S3 and asks Redis, not S3, about each object."""
    many, unknown = blobs(30, LARGE), blobs(2, LARGE)
    put(store, many)
    lower.versions.replace(unknown, HOUR)
    swept(store)  # it has tested whether deletions are conditional
    requests.clear()
    assert swept(store) == 0
    assert requests.count("head_object") == 2
    assert len(requests) <= 10


# ------------------------------------------------------------------ deletion


def test_released_blobs_are_deleted_from_s3(store, lower, clock):
    """A blob is swept after its last holder has released it and the grace period has passed, long
    before its age.
    """
    many, kept = blobs(3, LARGE), blobs(1, LARGE)
    put(store, many, 24 * HOUR)
    put(store, kept, 24 * HOUR, "task:2")
    store.blobs.release([*many, *kept], "task:1", 60)
    clock.advance(59)
    assert swept(store) == 0
    assert contents(store, many) == [content for (content,) in many.values()]
    clock.advance(1)
    assert store.blobs.hold(list(many), 1, "task:3") == set(many)
    assert swept(store) == 0  # another process is about to store it
    clock.advance(1)
    found = list(store.sweep(dry_run=True))
    assert there(lower) == {*many, *kept}
    assert list(store.sweep()) == found
    assert sorted(each.name for each in found) == sorted(many)
    assert {(each.kind, each.size) for each in found} == {("blob", LARGE)}
    assert "it has no holds left" in found[0].why
    assert there(lower) == set(kept)
    assert list(store.index.find(list(many)).values()) == [None] * 3  # and no record remains


@pytest.mark.server
@pytest.mark.parametrize("name", ("redis", "valkey", "sentinel", "cluster"))
def test_every_redis_deletes_released_blobs_from_s3(request, name, lower, monkeypatch):
    """Every kind of Redis keeps the tier index, for more blobs than one script handles."""
    first = open_store(request.getfixturevalue(name).url, prefix=os.urandom(4).hex())
    store = TieredStore(first, [lower], (1,), small=0)
    monkeypatch.setattr(redis_blobs, "BATCH", 7)
    many, kept = blobs(30, 5), blobs(10, 8)
    put(store, many)
    put(store, kept, holder="task:2")
    assert store.blobs.hold([*many, *kept], HOUR / 2, "task:3") == set()
    for holder in ("task:1", "task:3"):
        assert swept(store) == 0
        store.blobs.release([*many, *kept], holder, 0.001)
    wait_until(lambda: not set(many) & there(store), "the grace period has passed")
    assert {each.name for each in store.sweep()} == set(many)
    assert there(lower) == there(store) == set(kept)
    assert contents(store, kept) == [content for (content,) in kept.values()]
    store.close()


def test_expired_blobs_are_swept(store, lower, clock):
    """A blob that was never released is deleted when its last hold has expired."""
    many = blobs(1, LARGE)
    put(store, many, HOUR)
    store.blobs.hold(list(many), 5 * HOUR, "task:2")
    clock.advance(2 * HOUR)
    assert swept(store) == 0
    clock.advance(3 * HOUR + 1)
    assert swept(store) == 1
    assert there(lower) == set()


def test_leftovers_of_a_killed_publisher_expire(store, lower, clock):
    """Blobs that were stored but never recorded expire by their own age."""
    many = blobs(1, LARGE)
    store.blobs.hold(list(many), HOUR, "task:1")
    lower.versions.replace(many, HOUR)
    clock.advance(2 * HOUR)
    assert swept(store) == 0
    clock.advance(10)
    assert swept(store) == 1
    assert there(lower) == set()


STEPS = 5  # of a sweep, each a call to one of the tiers


def pausing(monkeypatch, index, lower, step, action):
    """Run *action* before call number *step* of a sweep to either tier; return all calls."""
    made = []

    def wrap(target, name):
        real = getattr(target, name)

        def call(*args, **options):
            if len(made) <= step and sys._getframe(1).f_code.co_name in (
                "_sweep_unneeded",
                "_unneeded",
            ):
                made.append(name)
                if len(made) == step + 1:
                    action()
            return real(*args, **options)

        monkeypatch.setattr(target, name, call)

    for name in ("find", "forget"):
        wrap(index, name)
    for name in ("versions", "delete_versions"):
        wrap(lower.versions, name)
    return made


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("holds", (True, False))
def test_a_blob_that_is_published_again_is_not_swept(
    store, first, lower, clock, monkeypatch, step, holds
):
    """A blob that is stored again stays, at whichever point the sweep pauses."""
    many = blobs(1, LARGE)
    put(store, many, 24 * HOUR)
    store.blobs.release(list(many), "task:1", 1)
    clock.advance(2)

    def publish():
        if holds:
            assert put(store, many, HOUR, "task:2") == set(many)
        else:
            store.blobs.put(many, HOUR, value_size=1024 * KIB)

    made = pausing(monkeypatch, store.index, lower, step, publish)
    swept(store)
    assert ["find", "versions", "find", "delete_versions", "forget"][: step + 1] == made
    assert contents(store, many) == [content for (content,) in many.values()]
    assert store.blobs.hold(list(many), HOUR, "task:3") == set()
    clock.advance(HOUR / 2)
    assert swept(store) == 0
    assert contents(store, many) == [content for (content,) in many.values()]


@pytest.mark.parametrize("holds", (True, False))
def test_a_slow_publisher_loses_nothing(store, first, lower, clock, monkeypatch, holds):
    """A sweep between storing and recording a blob keeps it."""
    many = blobs(1, LARGE)
    put(store, many, 24 * HOUR)
    store.blobs.release(list(many), "task:1", 1)
    clock.advance(2)
    removed = []
    before(monkeypatch, store.index, "add", lambda: removed.append(swept(store)))
    if holds:
        assert put(store, many, HOUR, "task:2") == set(many)
    else:
        store.blobs.put(many, HOUR, value_size=1024 * KIB)
    assert removed == [0]
    assert contents(store, many) == [content for (content,) in many.values()]


def test_a_killed_sweep_is_completed_by_the_next(store, first, lower, clock, monkeypatch):
    """The next sweep forgets what a killed sweep deleted."""
    many = blobs(2, LARGE)
    put(store, many, 24 * HOUR)
    store.blobs.release(list(many), "task:1", 1)
    clock.advance(2)
    with monkeypatch.context() as patch:
        patch.setattr(store.index, "forget", lambda places: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            swept(store)
    assert there(lower) == set()
    assert store.index.find(list(many)).keys() == many.keys()
    assert swept(store) == 0
    assert list(store.index.find(list(many)).values()) == [None] * 2


def test_storing_again_keeps_a_longer_lifetime(store, first, lower, clock, monkeypatch):
    """Storing a blob again for a shorter time keeps the lifetime that others extended meanwhile."""
    many = blobs(1, LARGE)
    (digest,) = many
    replace = lower.versions.replace

    def slow(some, ttl):
        # Another process stores it first, a third needs it for long; then our write
        # replaces it as if it hadn't changed, with our shorter lifetime.
        monkeypatch.setattr(lower.versions, "replace", replace)
        assert put(store, many, HOUR, "task:2") == set(many)
        assert put(store, many, 9 * HOUR, "task:3") == set()
        lower.blobs.delete([digest])
        return replace(some, ttl)

    monkeypatch.setattr(lower.versions, "replace", slow)
    assert put(store, many, HOUR, "task:1") == set(many)
    clock.advance(9 * HOUR - 1)
    assert swept(store) == 0
    assert contents(store, many) == [content for (content,) in many.values()]


def test_a_replaced_blob_is_extended_again(store, first, lower, clock, monkeypatch):
    """If a blob is replaced while its lifetime is extended, the new one is extended, too."""
    many = blobs(1, LARGE)
    (digest,) = many
    put(store, many, HOUR)
    clock.advance(60)

    def store_again():
        lower.blobs.delete([digest])
        lower.versions.replace(many, HOUR)
        place = store.index.find([digest])[digest]
        note = f"another {place.tier}"
        store.index.add({digest: HOUR}, note, ttl=HOUR, name="@put:other")

    after(monkeypatch, lower.versions, "extend", store_again)
    assert store.blobs.hold([digest], 9 * HOUR, "task:2") == set()
    clock.advance(9 * HOUR - 1)
    assert swept(store) == 0
    assert contents(store, many) == [content for (content,) in many.values()]


def test_retries_for_a_changing_blob_are_bounded(store, first, clock, monkeypatch):
    """A blob that is replaced at each check raises StoreUnavailable in the end."""
    many = blobs(1, LARGE)
    put(store, many, HOUR)
    monkeypatch.setattr(store.index, "extend", set)
    with pytest.raises(StoreUnavailable, match="was changed by others"):
        store.blobs.hold(list(many), 9 * HOUR, "task:2")


def test_a_server_that_deletes_unconditionally(store, lower, clock, monkeypatch, caplog):
    """A server that ignores conditions on deletions is left to its lifecycle rule, with a warning;
    the other tiers are swept.
    """
    many = blobs(1, LARGE)
    put(store, many, 24 * HOUR)
    store.blobs.release(list(many), "task:1", 1)
    clock.advance(2)
    monkeypatch.setattr(lower.conditions, "_known", lambda what: what != "delete")
    with caplog.at_level(logging.WARNING):
        assert swept(store) == 0
    assert caplog.text.count("lifecycle rule") == 1
    assert there(lower) == set(many)
    assert store.blobs.hold(list(many), HOUR, "task:2") == set(many)


def test_a_file_tier_expires_blobs_by_age(first, tmp_path, clock):
    """In a file tier, a released blob stays until its own expiry, which is half as long again."""
    file = FileStore(tmp_path, clock=clock, skew=0)
    store = TieredStore(first, [file], (1,), clock=clock)
    many = blobs(1, LARGE)
    put(store, many, 10 * HOUR)
    store.blobs.release(list(many), "task:1", 1)
    clock.advance(2)
    assert store.blobs.hold(list(many), HOUR, "task:1") == set(many)
    assert swept(store) == 0
    clock.advance(15 * HOUR)
    assert swept(store) == 1


# ------------------------------------------------------------------ losses


def test_a_first_tier_that_lost_its_records(first, lower, clock):
    """A blob in S3 without a record is read, stored again when published, and removed by its age
    alone.
    """
    many, root = blobs(3, LARGE), blobs(1, 10)
    put(TieredStore(first, [lower], clock=clock), {**many, **root}, 10 * HOUR)
    emptied = MemoryStore("first", clock=clock)
    store = TieredStore(emptied, [lower], clock=clock)
    assert contents(store, many) == [content for (content,) in many.values()]
    assert contents(store, list(many)[:1]) == next(iter(many.values()))
    with pytest.raises(BlobMissing):
        contents(store, [*many, *root])
    assert there(store) == set(many)
    assert swept(store) == 0
    again, *rest = many
    assert put(store, {again: many[again]}, HOUR, "task:2") == {again}
    assert scanned(lower)[again].ttl > 9 * HOUR  # used by those who still refer to it
    clock.advance(1.5 * HOUR)
    assert {each.name for each in store.sweep()} == {again}
    assert there(store) == set(rest)
    clock.advance(18.5 * HOUR + 2)
    assert swept(store) == 2
    assert there(lower) == set()


def test_an_object_that_was_lost_is_stored_again(store, lower, clock):
    """After a read finds that a recorded blob is missing, holds report it as missing."""
    many = blobs(3, LARGE)
    read, prolonged, unseen = many
    put(store, many)
    lower.blobs.delete(many)
    with pytest.raises(BlobMissing) as caught:
        contents(store, [read])
    assert caught.value.store == store.url
    assert store.blobs.hold([prolonged], 5 * HOUR, "task:2") == {prolonged}
    assert store.blobs.hold(list(many), 1, "task:2") == {read, prolonged}
    assert unseen not in there(store)


def test_a_blob_that_moves_while_it_is_read_is_found(store, first, lower, clock, monkeypatch):
    """A blob that moves to the first tier while it is read from another is found there."""
    many = blobs(2, LARGE)
    put(store, many)
    one, _ = many

    def move():
        lower.blobs.delete([one])
        first.blobs.put({one: many[one]}, HOUR)

    after(monkeypatch, store.index, "find", move)
    assert contents(store, many) == [content for (content,) in many.values()]


def test_a_tier_that_is_not_configured(first, lower, clock):
    """A blob in a tier that isn't configured isn't lost: reading names the tier to add, and
    publishing stores it again.
    """
    other = MemoryStore("other", clock=clock)
    many = blobs(2, LARGE)
    one, two = many
    put(TieredStore(first, [lower], clock=clock), many)
    tiers = TieredStore(first, [other], clock=clock)
    for store in (tiers, first):
        for asked in ([one], [one, two]):
            with pytest.raises(StoreUnavailable, match=r"is in s3://bucket/offload.*add it"):
                contents(store, asked)
    assert swept(tiers) == 0
    assert tiers.blobs.hold([one], HOUR, "task:2") == {one}
    put(tiers, {one: many[one]}, HOUR, "task:2")
    assert first.blobs.hold([two], HOUR, "task:3") == {two}
    first.blobs.put({two: many[two]}, HOUR)
    assert contents(tiers, many) == contents(TieredStore(first, [lower, other], (1, 2)), many)
    assert there(lower) == set(many)


@pytest.mark.server
@pytest.mark.parametrize("name", ("redis", "cluster"))
def test_a_redis_without_its_tier(request, name, lower):
    """A Redis store without its S3 tier doesn't report blobs in S3 as missing."""
    alone = open_store(request.getfixturevalue(name).url)
    many = {**blobs(2, LARGE), **blobs(1, 10)}
    one, two, root = many
    put(TieredStore(alone, [lower]), many)
    assert contents(alone, [root]) == [many[root][0]]
    with pytest.raises(StoreUnavailable, match=r"is in s3://bucket/offload.*add it") as caught:
        contents(alone, [root, two, one])
    assert caught.value.digest == two
    assert alone.blobs.hold(list(many), HOUR, "task:2") == {one, two}
    alone.close()


def test_the_sweep_of_one_tier_does_not_wait_for_another(first, clock, lower, monkeypatch):
    """An unavailable tier doesn't keep others from being swept, and is reported at the end."""
    other = MemoryStore("other", clock=clock)
    store = TieredStore(first, [lower, other], (1000 * KIB, 2000 * KIB), clock=clock)
    many = blobs(1, LARGE)
    put(store, many, size=2000 * KIB)
    clock.advance(2 * HOUR)

    def unavailable(*_args, **_options):
        raise StoreUnavailable("it is away")

    monkeypatch.setattr(lower.client, "ask", unavailable)
    found = []
    with pytest.raises(StoreUnavailable, match="away"):
        found.extend(each.name for each in store.sweep())
    assert there(other) == set()


def test_a_deleted_blob_is_deleted_everywhere(store, first, lower):
    """A deleted blob is in no tier and not in the tier index."""
    many = {**blobs(1, LARGE), **blobs(1, 10)}
    put(store, many)
    store.blobs.delete(many)
    assert (there(first), there(lower), there(store)) == (set(), set(), set())
    assert store.blobs.hold(list(many), 1, "task:2") == set(many)
    put(store, many)
    assert contents(store, many) == [content for (content,) in many.values()]


# ------------------------------------------------------------------ counters by tier


def counted(counters):
    """Return the counters by store and name, without durations."""
    taken = counters.take()
    assert all(what.store and not what.task for what in taken)
    names = {(what.store, what.name.removeprefix("of_store_")): n for what, n in taken.items()}
    return {key: n for key, n in names.items() if "seconds" not in key[1]}


def test_blobs_and_bytes_are_counted_per_tier(store, first, lower):
    """Blobs and stored bytes are counted per tier; deduplicated blobs aren't."""
    counters = Counters()
    store.count_by_tier(counters)
    small, large = blobs(2, 10 * KIB), blobs(3, LARGE)
    put(store, {**small, **large})
    put(store, {**small, **large}, holder="task:2")
    assert counted(counters) == {
        (first.url, "blobs_uploaded"): 2,
        (first.url, "bytes_stored"): 2 * 10 * KIB,
        (lower.url, "blobs_uploaded"): 3,
        (lower.url, "bytes_stored"): 3 * LARGE,
    }
    store.blobs.put({**large, **blobs(1, LARGE)}, HOUR, value_size=1024 * KIB)
    assert counted(counters)[lower.url, "blobs_uploaded"] == 1
    assert contents(store, {**large, **small})
    assert counted(counters) == {
        (first.url, "blobs_fetched"): 2,
        (first.url, "bytes_fetched"): 2 * 10 * KIB,
        (lower.url, "blobs_fetched"): 3,
        (lower.url, "bytes_fetched"): 3 * LARGE,
    }


def test_durations_are_counted_per_tier(store, first, lower):
    """Uploads and fetches are timed under the tier that answered them."""
    counters = Counters()
    store.count_by_tier(counters)
    large = blobs(1, LARGE)
    put(store, large)
    contents(store, large)
    times = {
        (what.store, what.name.removeprefix("of_store_").partition("_")[0])
        for what in counters.take()
        if "_seconds_" in what.name
    }
    assert times == {(lower.url, "upload"), (lower.url, "fetch")}


def test_failures_are_counted_per_tier(store, first, lower, monkeypatch):
    """Calls that a tier doesn't answer are counted as its failures; missing blobs aren't."""
    counters = Counters()
    store.count_by_tier(counters)
    large = blobs(1, LARGE)

    def unavailable(*_, **__):
        raise StoreUnavailable("away", store=lower.url)

    monkeypatch.setattr(lower.client, "ask", unavailable)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            put(store, large)
    monkeypatch.undo()
    with pytest.raises(BlobMissing):
        list(store.blobs.get(list(blobs(1, 5)), LARGE))
    assert counted(counters) == {(lower.url, "calls_failed"): 2}
