"""Bad input, damaged records, and stores that fail: nothing is half-written or half-read."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from pathlib import Path

import pytest

from offload import (
    BlobMissing,
    Catalog,
    CatalogError,
    ConfigurationError,
    IntegrityError,
    ObjectNotFound,
    SerializationError,
    StoreUnavailable,
    UnsupportedVersion,
    VersionConflict,
)
from offload.catalog.names import name_pointer, record_pointer
from offload.catalog.records import MAX_METADATA, NameState, seal, write_state
from offload.stores.checks import MAX_POINTER
from offload.stores.memory import MemoryPointers, MemoryStore
from offload.stores.protocols import FOREVER
from offload.testing.store import FakeClock
from tests.support.careless_s3 import careless_s3

NAME = "churn:model"
RETRY = {"max_retries": 2, "interval_start": 0, "interval_step": 0}
YEAR = 365 * 86400.0


class Pointers(MemoryPointers):
    """Pointers that fail before or after a change, as *faults* say (by the name's start)."""

    def __init__(self):
        super().__init__()
        self.before, self.after = {}, {}

    @property
    def all(self):
        return dict(self._values)

    def swap(self, name, expected, value):
        self.fail(self.before, name)
        done = super().swap(name, expected, value)
        self.fail(self.after, name)
        return done

    @staticmethod
    def fail(faults, name):
        for start in faults:
            if name.startswith(start) and faults[start]:
                faults[start] -= 1
                raise StoreUnavailable("down")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(clock):
    store = MemoryStore(clock=clock)
    store.pointers = Pointers()
    return store


@pytest.fixture
def catalog(store):
    return Catalog(store, retry=RETRY, grace=1)


def pointer(version="1", name=NAME):
    return record_pointer("default", name, version)


def set_pointer(store, name, value):
    assert store.pointers.swap(name, store.pointers.read(name), value)


def holders(store, record):
    return store.blobs.holders(record.digest)


# -- bad input


class NotJson:
    pass


LOOP: list = []
LOOP.append(LOOP)
DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]

BAD = {
    "dots": {"name": "a/../b"},
    "empty part": {"name": "a//b"},
    "control character": {"name": "a\x07"},
    "version": {"version": "two"},
    "tag as version": {"version": "production"},
    "latest": {"version": "latest"},
    "long version": {"version": "1." * 20 + "1"},
    "conflict": {"on_conflict": "replace"},
    "1 MB of metadata": {"metadata": {"text": "x" * 1_000_000}},
    "just too much": {"metadata": "x" * (MAX_METADATA - 1)},
    "no JSON": {"metadata": {"a": NotJson()}},
    "bytes": {"metadata": b"a"},
    "tuple": {"metadata": (1, 2)},
    "keys": {"metadata": {1: 2}},
    "nan": {"metadata": math.nan},
    "surrogate": {"metadata": "\ud800"},
    "loop": {"metadata": LOOP},
    "deep": {"metadata": DEEP},
    "a little deep": {"metadata": eval("[" * 60 + "]" * 60)},
}


def test_a_version_in_a_name_is_a_value_error(catalog):
    """A call with a separate argument for the version says so if it gets ``name@version``."""
    with pytest.raises(ValueError, match="a version is an argument of its own"):
        catalog.load("churn@1")


@pytest.mark.parametrize("since", ("7d", timedelta(days=7)), ids=("text", "timedelta"))
def test_wrong_conditions_of_a_search_are_refused(catalog, since):
    """`find` refuses, also in an empty catalog, a time or a size of another type, by name."""
    with pytest.raises(TypeError, match="since is"):
        catalog.find(since=since)
    with pytest.raises(TypeError, match="larger_than is"):
        catalog.find(larger_than="1MB")
    with pytest.raises(TypeError, match="metadata is a dict"):
        catalog.find(metadata=["stage"])
    with pytest.raises(TypeError, match="type is a type or its name"):
        catalog.find(type=5)
    for prefix in (None, 5):
        with pytest.raises(TypeError, match="a prefix is text"):
            catalog.find(prefix)
        with pytest.raises(TypeError, match="a prefix is text"):
            catalog.list_objects(prefix)


@pytest.mark.parametrize("version", (1.0, True, None, b"1"))
def test_a_version_of_another_type_is_told_by_it(catalog, version):
    """The error for a number or bytes instead of a version shows its type, not its text."""
    with pytest.raises(ValueError, match=f"not a version: a {type(version).__name__};"):
        catalog.load(NAME, version)


@pytest.mark.parametrize("name", (None, b"m", Path("m"), {"m": 1}))
def test_a_name_is_text_or_a_list(catalog, name):
    """Each call refuses a name of another type, and says that it expects text."""
    for call in (lambda: catalog.save(name, 1), lambda: catalog.load(name)):
        with pytest.raises(ValueError, match="name: expected a string or a list of strings, not a"):
            call()
    with pytest.raises(ValueError, match="name: expected a string or a list of strings, not a"):
        catalog.remove(name)


@pytest.mark.parametrize("given", BAD.values(), ids=BAD)
def test_bad_input_is_a_value_error(catalog, store, given):
    """A bad name, version, or metadata is a ValueError that says what is allowed."""
    call = {"name": NAME, "obj": 1, **given}
    with pytest.raises(ValueError, match=r"a name is|a version is|metadata|on_conflict is"):
        catalog.save(**call)
    assert store.pointers.all == {}
    assert list(store.blobs.scan()) == []


@pytest.mark.parametrize(
    "call",
    (
        lambda catalog: catalog.load("a/../b"),
        lambda catalog: catalog.load(NAME, "no version"),
        lambda catalog: catalog.load(NAME, verify="some"),
        lambda catalog: catalog.remove(NAME, "1.x"),
        lambda catalog: catalog.tag(NAME, "v1"),
        lambda catalog: catalog.info(NAME, ""),
        lambda catalog: catalog.tags("a//b"),
        lambda catalog: catalog.bucket("a/b"),
        lambda catalog: catalog["a@"],
        lambda catalog: catalog.save(["a", "b"], [1]),
        lambda catalog: catalog.save(["a", "b"], [1, 2], ["1"]),
        lambda catalog: catalog.load(["a"], ["1", "2"]),
        lambda catalog: catalog.load({"a"}),
    ),
)
def test_other_calls_refuse_bad_input_as_well(catalog, call):
    """What can't be a name, version, tag, bucket, or list is a ValueError everywhere."""
    with pytest.raises(ValueError, match=r"is|need|expected|no version"):
        call(catalog)


def test_any_json_comes_back(catalog):
    """Metadata is returned unchanged, even at its limits."""
    for number, metadata in enumerate(
        (None, 0, "", [], {}, -1.5e300, 2**70, "é\u2028\x00", {"a": [{"b": None}]}, "x" * 59_998)
    ):
        catalog.save(NAME, 1, metadata=metadata)
        found = catalog.info(NAME, str(number + 1)).metadata
        assert found == metadata
        assert type(found) is type(metadata)


def test_no_pickle_unless_it_is_accepted(store, tmp_path):
    """Values that need pickle are refused, on saving and loading, unless pickle is accepted."""
    value = {NotJson: 1}
    with pytest.raises(SerializationError):
        Catalog(store).save("a", value)
    assert not any(name.startswith("catalog/") for name in store.pointers.all)
    trusting = Catalog(store, accept=("json", "pickle"))
    trusting.save("a", value)
    assert trusting.load("a") == value
    with pytest.raises(Exception, match="pickle"):
        Catalog(store).load("a")


@pytest.mark.parametrize(
    "given", ({"accept": "pickle"}, {"accept": ("jsn",)}, {"secret": "short"}, {"grac": 1})
)
def test_wrong_settings_are_refused(store, given):
    """A catalog takes the settings of an app, and refuses wrong ones."""
    with pytest.raises(ConfigurationError):
        Catalog(store, **given)


# -- stores that fail


@pytest.mark.parametrize("start", ("catalog/", "catalog-names/", "catalog-buckets/"))
def test_a_lost_answer_is_no_conflict(catalog, store, start):
    """A change whose reply is lost is recognized: no number is lost or used twice."""
    store.pointers.after[start] = 1
    assert catalog.save(NAME, "one").version == "1"
    store.pointers.after[start] = 1
    assert catalog.save(NAME, "two", "2").version == "2"
    assert catalog.list_versions(NAME) == ["1", "2"]
    assert catalog.load(NAME) == "two"


@pytest.mark.parametrize("start", ("catalog/", "catalog-names/", "catalog-buckets/"))
def test_a_store_lost_between_blobs_and_record(catalog, store, start):
    """If the store fails before the record is set, there is no version, and the next saver gets
    the next number: the one that the failed saver has taken isn't used again.
    """
    store.pointers.before[start] = 99
    with pytest.raises(StoreUnavailable):
        catalog.save(NAME, [1] * 100)
    store.pointers.before.clear()
    assert not catalog.has_object(NAME)
    assert catalog.list_objects() == catalog.list_versions(NAME) == []
    with pytest.raises(ObjectNotFound):
        catalog.load(NAME)
    taken = start == "catalog/"
    assert catalog.save(NAME, [2] * 100).version == ("2" if taken else "1")
    assert catalog.load(NAME) == [2] * 100


def test_a_store_lost_after_the_record(catalog, store, clock):
    """If the store fails while the record is set, the call raises; the version is complete."""
    plain = Catalog(store, retry={"max_retries": 0})
    store.pointers.after["catalog/"] = 1
    with pytest.raises(StoreUnavailable):
        plain.save(NAME, [1] * 100)
    clock.advance(YEAR)  # it is held without expiry
    assert catalog.load(NAME) == [1] * 100
    assert catalog.save(NAME, 2).version == "2"


def test_a_batch_goes_on_after_a_failure(catalog, store):
    """If some items of a batch fail, the others are saved, and each outcome is reported."""
    store.pointers.before[pointer(name="b")] = 99
    saved = catalog.save(["a", "b", "c"], [1, 2, 3])
    assert (saved.succeeded, saved.failed) == (["a", "c"], ["b"])
    assert isinstance(saved.errors["b"], StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        saved.raise_first()
    assert catalog.list_objects() == ["a", "c"]


@pytest.mark.server
def test_a_server_that_ignores_conditions_is_refused():
    """If two savers could both win, nothing is saved."""
    with careless_s3() as url:
        catalog = Catalog(url)
        with pytest.raises(ConfigurationError, match="condition"):
            catalog.save(NAME, 1)
        assert catalog.list_objects() == []


# -- holds


def test_content_is_held_as_long_as_its_record(catalog, store, clock):
    """A record's content has one holder without expiry, which is released with the record."""
    one = catalog.save(NAME, "content")
    two = catalog.save("other", "content")
    assert set(holders(store, one)) == {one.holder, two.holder}
    assert min(holders(store, one).values()) > 50 * YEAR
    catalog.remove(NAME)
    assert set(holders(store, one)) == {two.holder}
    catalog.remove("other")
    assert holders(store, one) == {}
    clock.advance(2)
    assert list(store.blobs.scan()) == []


def test_overwriting_releases(catalog, store):
    """The content of an overwritten version is released; a refused saver holds nothing."""
    first = catalog.save(NAME, "one", "1")
    mutable = Catalog(store, mutable=True, grace=1)
    second = mutable.save(NAME, "two", "1", on_conflict="overwrite")
    assert holders(store, first) == {}
    assert set(holders(store, second)) == {second.holder}
    again = mutable.save(NAME, "two", "1", on_conflict="overwrite")
    assert set(holders(store, second)) == {again.holder}
    with pytest.raises(VersionConflict):
        catalog.save(NAME, "three", "1")
    assert len(list(store.blobs.scan())) == 2  # of which the grace period ends one


def test_a_loser_holds_nothing(catalog, store):
    """A saver that is overtaken at the last moment releases what it has stored."""
    original, other = store.pointers.swap, Catalog(store)

    def swap(name, expected, value):
        if name == pointer("2.1") and store.pointers.swap is swap:
            store.pointers.swap = original
            other.save(NAME, "theirs", "2.1")
        return original(name, expected, value)

    store.pointers.swap = swap
    with pytest.raises(VersionConflict):
        catalog.save(NAME, "ours", "2.1")
    assert catalog.load(NAME) == "theirs"
    held = [set(store.blobs.holders(info.digest)) for info in store.blobs.scan()]
    assert sorted(map(len, held)) == [0, 1]


def test_a_number_is_taken_once(catalog, store):
    """While a saver is stopped before it sets its record, others save and remove versions: it
    doesn't get the number of one of them, and each number is higher than those before.
    """
    original, other, numbers = store.pointers.swap, Catalog(store), []

    def swap(name, expected, value):
        if name.startswith("catalog/") and store.pointers.swap is swap:
            store.pointers.swap = original
            for value_of_other in range(2):
                numbers.append(other.save(NAME, value_of_other).version)
                other.remove(NAME, numbers[-1])
        return original(name, expected, value)

    store.pointers.swap = swap
    assert catalog.save(NAME, "ours").version not in numbers
    assert len({*numbers}) == 2
    assert catalog.save(NAME, "next").version == "4"
    assert catalog.list_versions(NAME) == ["1", "4"]


@pytest.mark.parametrize("on_conflict", ("error", "skip", "overwrite"))
def test_a_number_that_a_saver_took_is_its_own(catalog, store, on_conflict):
    """While a saver that took a number is stopped, nobody else can save that version, so that it
    doesn't come again after it was removed. Once it is saved, that is as with any version.
    """
    original, other, refused = store.pointers.swap, Catalog(store, mutable=True), []

    def swap(name, expected, value):
        if name == pointer("1") and store.pointers.swap is swap:
            store.pointers.swap = original
            with pytest.raises(VersionConflict, match=f"{NAME}@1 .* try again") as caught:
                other.save(NAME, "theirs", "1", on_conflict=on_conflict)
            refused.append(caught.value.argument)
            other.save(NAME, "theirs", "0.9", on_conflict=on_conflict)
        return original(name, expected, value)

    store.pointers.swap = swap
    assert catalog.save(NAME, "ours").version == "1"
    assert refused == [f"{NAME}@1"]
    assert catalog.list_versions(NAME) == ["0.9", "1"]
    other.save(NAME, "replaced", "1", on_conflict="overwrite")
    other.remove(NAME, "1")
    other.save(NAME, "again", "1", on_conflict=on_conflict)
    assert other.load(NAME) == "again"


@pytest.mark.parametrize("on_conflict", ("error", "skip"))
def test_a_number_that_was_taken_and_saved_meanwhile_exists(catalog, store, on_conflict):
    """If the saver that took a number finishes while another saves that version, the other one
    finds a version that exists: a conflict as any, or skipped.
    """
    original, other = store.pointers.swap, Catalog(store)

    def swap(name, expected, value):
        if name == name_pointer("default", NAME) and store.pointers.swap is swap:
            store.pointers.swap = original
            assert other.save(NAME, "theirs").version == "1"
        return original(name, expected, value)

    store.pointers.swap = swap
    if on_conflict == "skip":
        assert catalog.save(NAME, "ours", "1", on_conflict="skip") == catalog.info(NAME, "1")
    else:
        with pytest.raises(VersionConflict, match="already exists"):
            catalog.save(NAME, "ours", "1")
    assert catalog.load(NAME) == "theirs"


def test_a_version_that_another_is_saving_is_not_the_next_number(catalog, store):
    """While a saver of a given number is stopped, others get other numbers, so that what it saves
    and removes doesn't come again.
    """
    original, other = store.pointers.swap, Catalog(store)

    def swap(name, expected, value):
        if name == pointer("1") and store.pointers.swap is swap:
            store.pointers.swap = original
            assert other.save(NAME, "theirs").version == "2"
        return original(name, expected, value)

    store.pointers.swap = swap
    assert catalog.save(NAME, "ours", "1").version == "1"
    assert catalog.list_versions(NAME) == ["1", "2"]


def test_a_killed_saver_blocks_its_number_for_an_hour(catalog, store):
    """The number of a saver that was killed can be given an hour later; what others save
    meanwhile isn't affected.
    """
    store.pointers.before["catalog/"] = 99
    with pytest.raises(StoreUnavailable):
        catalog.save(NAME, 1)
    store.pointers.before.clear()
    with pytest.raises(VersionConflict):
        catalog.save(NAME, 2, "1")
    assert catalog.get_or_compute(NAME, None, int, 3) == 3
    assert catalog.list_versions(NAME) == ["2"]
    then = catalog._content().now() + 3601
    catalog._content().now = lambda: then
    assert catalog.save(NAME, 4, "1").version == "1"


def test_a_saver_that_was_stopped_too_long_takes_another_number(catalog, store, monkeypatch):
    """A saver that is stopped for longer than its number is reserved takes another one."""
    content, other = catalog._content(), Catalog(store)
    hold, now = store.blobs.hold, [content.now()]
    content.now = other._content().now = lambda: now[0]

    def stopped(digests, ttl, holder):
        if ttl == FOREVER and store.blobs.hold is stopped:
            monkeypatch.undo()
            now[0] += 7200
            other.save(NAME, "theirs", "1")
            other.remove(NAME, "1")
        return hold(digests, ttl, holder)

    monkeypatch.setattr(store.blobs, "hold", stopped)
    assert catalog.save(NAME, "ours").version == "2"
    assert catalog.list_versions(NAME) == ["2"]
    held = [holder for info in store.blobs.scan() for holder in store.blobs.holders(info.digest)]
    assert held == [catalog.info(NAME, "2").holder]


def test_a_removed_bucket_forgets_its_numbers(catalog, store):
    """After a bucket was removed, its objects count from 1 again, unless a saver may still write
    one of the numbers: for an hour, they go on.
    """
    now = [catalog._content().now()]
    catalog._content().now = lambda: now[0]
    team = catalog.bucket("team")
    for version, lasts in (("1", 60), ("2", 60), ("3", 3601), ("1", 3601)):
        assert team.save(NAME, 1).version == version
        now[0] += lasts
        catalog.remove_bucket("team", force=True)
    assert not any("/team" in name for name in store.pointers.all)


def test_the_next_number_follows_versions_below_failed_ones(catalog, store):
    """If many savers of given versions fail, the next number follows the highest version that
    exists nevertheless.
    """
    catalog.save(NAME, 1, "50")
    store.pointers.before["catalog/"] = 10**9
    for number in range(51, 60):
        with pytest.raises(StoreUnavailable):
            catalog.save(NAME, 2, number)
    store.pointers.before.clear()
    assert catalog.save(NAME, 3).version == "60"


def test_an_emptied_store_is_used_with_its_new_key(catalog, store):
    """After a store was emptied, and others have used it, a process that knew its old key reads
    and saves as they do.
    """
    catalog.save(NAME, 1)
    store.pointers._values.clear()
    Catalog(store).save(NAME, 2)
    signing = catalog._content().signing
    later = signing._clock() + 2
    signing._clock = lambda: later
    assert catalog.load(NAME) == 2
    assert catalog.save(NAME, 3).version == "2"


def test_there_is_a_last_number(catalog):
    """After the greatest number that a version can have, a save without a version is refused, and
    says what to do.
    """
    catalog.save(NAME, 1, "9" * 30)
    with pytest.raises(CatalogError, match="give a version"):
        catalog.save(NAME, 2)
    assert catalog.save(NAME, 2, "1.5").version == "1.5"
    assert catalog.list_versions(NAME) == ["1.5", "9" * 30]


def test_a_century_is_asked_for(catalog, store, monkeypatch):
    """What a record names is held `FOREVER`, also where no holds are tracked."""
    asked = []
    hold = store.blobs.hold
    monkeypatch.setattr(type(store.blobs), "tracks_holds", False)
    monkeypatch.setattr(
        store.blobs,
        "hold",
        lambda digests, ttl, holder: asked.append(ttl) or hold(digests, ttl, holder),
    )
    catalog.save(NAME, [1] * 100)
    assert asked == [FOREVER]
    assert catalog.load(NAME) == [1] * 100


# -- damage


@pytest.fixture
def versions(catalog):
    """Three versions of an object, the second of which is to be damaged."""
    return [catalog.save(NAME, [number] * 100) for number in (1, 2, 3)]


def assert_others_load(catalog):
    assert catalog.load(NAME, "1") == [1] * 100
    assert catalog.load(NAME) == [3] * 100
    assert catalog.save(NAME, 4).version == "4"


def damage_at(value, at):
    return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]


def test_an_altered_record_is_refused(catalog, store, versions):
    """A record with any byte changed is an IntegrityError that names it; others still load."""
    good = store.pointers.read(pointer("2"))
    for at in range(0, len(good), 7):
        set_pointer(store, pointer("2"), damage_at(good, at))
        with pytest.raises(IntegrityError, match=f"{NAME}@2") as caught:
            catalog.load(NAME, "2")
        assert caught.value.argument == f"{NAME}@2"
    for bad in (b"", b"{}", b"\xff", b"null", good[:40], good + b" ", b"0" * 32 + b" []"):
        set_pointer(store, pointer("2"), bad)
        with pytest.raises(IntegrityError, match=f"{NAME}@2"):
            catalog.load(NAME, "2")
    assert [record.version for record in catalog.info(NAME)] == ["1", "3"]
    assert catalog.stats().unreadable == 1
    assert catalog.load([NAME, NAME], ["1", "2"]).failed == [f"{NAME}@2"]
    assert_others_load(catalog)
    with pytest.raises(IntegrityError):
        catalog.save(NAME, 5, "2")
    assert catalog.remove(NAME, "2") == 1
    assert catalog.save(NAME, 5, "2").version == "2"


def test_a_copied_record_is_refused(catalog, store, versions):
    """A record of another version or object is refused: it is signed for its own pointer."""
    catalog.save("other", "secret", "2")
    for source in (pointer("1"), pointer("2", "other")):
        set_pointer(store, pointer("2"), store.pointers.read(source))
        with pytest.raises(IntegrityError, match=f"{NAME}@2"):
            catalog.load(NAME, "2")


def test_an_altered_record_can_be_overwritten(store, catalog, versions):
    """A mutable catalog repairs an altered record by overwriting it."""
    set_pointer(store, pointer("2"), b"damaged")
    mutable = Catalog(store, mutable=True)
    mutable.save(NAME, "repaired", "2", on_conflict="overwrite")
    assert catalog.load(NAME, "2") == "repaired"


def test_another_secret_reads_nothing(store, catalog):
    """Records signed with another secret are refused."""
    ours = Catalog(store, secret="a secret of our own")
    ours.save(NAME, 1)
    with pytest.raises(IntegrityError, match=NAME):
        catalog.load(NAME, "1")
    assert Catalog(store, secret=("another, new one", "a secret of our own")).load(NAME) == 1


def test_missing_content(catalog, store, versions):
    """Missing content is a BlobMissing that names the version; others still load."""
    store.blobs.delete([versions[1].digest])
    with pytest.raises(BlobMissing, match=f"{NAME}@2"):
        catalog.load(NAME, "2")
    loaded = catalog.load([NAME] * 3, ["1", "2", "3"])
    assert loaded.failed == [f"{NAME}@2"]
    assert isinstance(loaded.errors[f"{NAME}@2"], BlobMissing)
    with pytest.raises(BlobMissing, match=f"{NAME}@2"):
        catalog.copy(NAME, "copy", "2")
    assert_others_load(catalog)


def test_altered_content(catalog, store, versions):
    """Altered content is an IntegrityError that names the version; others still load."""
    blob = store.blobs._state.blobs[versions[1].digest]
    blob.content = damage_at(blob.content, len(blob.content) - 1)
    with pytest.raises(IntegrityError, match=f"{NAME}@2"):
        catalog.load(NAME, "2")
    assert_others_load(catalog)


def newer(catalog, name):
    """Write a record or state as the next version of offload may; only the right key signs it."""
    value = catalog.store.pointers.read(name)
    data = json.loads(value.partition(b" ")[2]) | {"format": 9, "versions": {"in": "a new form"}}
    keys = catalog._content().signing.keys
    set_pointer(catalog.store, name, seal(name, data, keys))


CHANGES = {
    "load": lambda catalog: catalog.load(NAME),
    "save": lambda catalog: catalog.save(NAME, 2),
    "save the version": lambda catalog: catalog.save(NAME, 2, "1"),
    "overwrite": lambda catalog: catalog.save(NAME, 2, "1", on_conflict="overwrite"),
    "skip": lambda catalog: catalog.save(NAME, 2, "1", on_conflict="skip"),
    "tag": lambda catalog: catalog.tag(NAME, "production"),
    "remove": lambda catalog: catalog.remove(NAME),
    "remove the version": lambda catalog: catalog.remove(NAME, "1"),
    "copy": lambda catalog: catalog.copy(NAME, "copy"),
}


@pytest.mark.parametrize("written", (pointer("1"), name_pointer("default", NAME)))
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_a_newer_version_wrote_stays(store, written, change):
    """Data written by a newer offload raises UnsupportedVersion, and isn't changed."""
    catalog = Catalog(store, mutable=True)
    catalog.save(NAME, 1)
    newer(catalog, written)
    before = store.pointers.all
    with pytest.raises(UnsupportedVersion, match="upgrade offload"):
        change(catalog)
    assert store.pointers.all == before


@pytest.mark.parametrize("written", (pointer("1"), name_pointer("default", NAME)))
def test_a_claim_to_be_newer_is_signed(catalog, store, written):
    """Who can write to the store but doesn't know the key can't pass for a newer offload: that is
    an altered value, which blocks an object no longer than any other.
    """
    catalog.save(NAME, 1)
    value = store.pointers.read(written)
    set_pointer(store, written, value.replace(b'"format":1', b'"format":9'))
    with pytest.raises(IntegrityError, match="altered"):
        catalog.load(NAME)
    catalog.mend()
    assert catalog.save(NAME, 2).version == "2"
    assert catalog.load(NAME) == 2


# -- lost states of names


def test_versions_are_listed_anew(catalog, store, versions):
    """After an object's state was lost or damaged, `mend` lists its versions again."""
    for state in (None, b"damaged"):
        set_pointer(store, name_pointer("default", NAME), state)
        assert catalog.load(NAME, "2") == [2] * 100
        assert catalog.list_objects() == [NAME]
        assert catalog.mend() == 1
        assert catalog.load(NAME) == [3] * 100
        assert catalog.mend() == 0


def test_numbers_go_on_without_a_state(catalog, store):
    """After an object's state was lost, the next saver finds the next number, and lists all."""
    for number in range(1, 14):
        catalog.save(NAME, number)
    catalog.save(NAME, 14, "99.5")
    set_pointer(store, name_pointer("default", NAME), None)
    assert catalog.save(NAME, 15).version == "100"
    assert catalog.list_versions(NAME) == [*map(str, range(1, 14)), "99.5", "100"]


def test_announced_versions_are_forgotten(catalog, store):
    """A version whose saver failed is unlisted once no process can still write it."""
    store.pointers.before["catalog/"] = 99
    with pytest.raises(StoreUnavailable):
        catalog.save("gone", 1)
    store.pointers.before.clear()
    state = lambda: catalog._pointers.state("gone")[1]
    assert catalog.mend() == 0
    assert state().keys == {"1"}
    catalog._content().now = lambda: 1e12
    catalog._content().signing._clock = lambda: 0.0
    assert catalog.mend() == 1
    assert state() == NameState(last=1)


def test_too_many_versions(catalog, store):
    """An object with too many versions for one list takes no more, and loads as before."""
    keys, many = catalog._content().signing.keys, frozenset(map(str, range(1, 9_301)))
    state = name_pointer("default", NAME)
    catalog.save(NAME, "last", "9300")
    set_pointer(store, state, write_state(NameState(many), state, keys))
    assert catalog.save(NAME, "next").version == "9301"
    assert catalog.load(NAME) == "next"
    with pytest.raises(CatalogError, match="remove some versions"):
        for number in range(1, 2_000):
            catalog.save(NAME, number, f"9999999999999999999999999.{number}")
    assert catalog.load(NAME, "9300") == "last"
    assert catalog.remove(NAME, "9301") == 1


def test_many_versions_at_once(catalog, store):
    """Thousands of versions may be saved within an hour: a list that gets too long leaves out when
    those were announced that have been written, and keeps it of others.
    """
    content = catalog._content()
    now, keys = content.now(), content.signing.keys
    catalog.save(NAME, 1)
    value = store.pointers.read(pointer("1"))
    many, waiting = list(map(str, range(1, 1_900))), ["0.1", "2000.5"]
    for number in many[1:]:
        set_pointer(store, pointer(number), value)
    set_pointer(store, pointer("2000.5"), value)
    recent = dict.fromkeys([*many, *waiting], now)
    state = NameState(frozenset(recent), recent, last=1_900)
    longer = {f"0.{'1' * 24}{n}" for n in range(1_000)}
    while True:  # until it is full
        fuller = state.found([longer.pop()])
        try:
            written = write_state(fuller, name_pointer("default", NAME), keys)
        except CatalogError:
            break
        state, last = fuller, written
    set_pointer(store, name_pointer("default", NAME), last)
    for _ in range(3):
        saved = catalog.save(NAME, "next").version
    assert saved == "2003"
    found = catalog._pointers.state(NAME)[1]
    assert found.keys == state.keys | {"2001", "2002", "2003"}
    assert {*waiting} <= set(found.recent) <= {*waiting, "2001", "2002", "2003"}


def test_a_full_list_can_be_shortened(catalog):
    """However full the list of an object's versions is, it has room for the number of a removed
    version, so that versions can be removed.
    """
    keys, state = catalog._content().signing.keys, name_pointer("default", NAME)
    versions = frozenset(map(str, range(9_000)))

    def with_one_more(length):
        return NameState(versions | {"1" * length})

    used = len(write_state(with_one_more(10), state, keys)) - 10
    longest = MAX_POINTER - used
    while True:
        try:
            write_state(with_one_more(longest), state, keys)
            break
        except CatalogError:
            longest -= 1
    assert longest > MAX_POINTER - used - 100
    assert write_state(with_one_more(longest).numbered(10**25), state, keys)
