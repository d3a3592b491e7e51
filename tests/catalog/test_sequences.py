"""The specification's registry and object store, under our names, on every kind of store."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
import pytest

from offload import BucketNotEmpty, Catalog, ObjectNotFound, VersionConflict
from offload.catalog.search import CatalogStats
from offload.stores.memory import MemoryStore

pytestmark = pytest.mark.server

MODEL = "churn:model"
BIG = np.arange(400_000)  # several blobs


# -- registries


def test_what_is_saved_is_loaded(catalog):
    """A saved object is loaded unchanged, each time as a separate copy."""
    saved = catalog.save(MODEL, {"weights": [1, 2]}, metadata={"stage": "test"})
    assert (saved.name, saved.version, saved.type) == (MODEL, "1", "dict")
    first, second = catalog.load(MODEL), catalog.load(MODEL)
    assert first == second == {"weights": [1, 2]}
    assert first is not second
    catalog.save("frame", BIG)
    assert np.array_equal(catalog.load("frame"), BIG)


def test_versions_1_2_and_2_1(catalog):
    """Versions are numbered automatically or given; the latest is the highest."""
    assert catalog.save(MODEL, "one").version == "1"
    assert catalog.save(MODEL, "two").version == "2"
    assert catalog.save(MODEL, "two and a bit", "2.1").version == "2.1"
    assert catalog.list_versions(MODEL) == ["1", "2", "2.1"]
    assert catalog.load(MODEL) == catalog.load(MODEL, "latest") == "two and a bit"
    assert [catalog.load(MODEL, version) for version in ("1", 2, "2.0")] == ["one", "two", "two"]
    assert catalog.save(MODEL, "three").version == "3"
    assert catalog.save(MODEL, "old", "0.5").version == "0.5"
    assert catalog.load(MODEL) == "three"


def test_a_version_is_not_overwritten_by_default(catalog):
    """Saving a version again is a conflict, or skipped; only mutable catalogs overwrite."""
    catalog.save(MODEL, "one", "1")
    with pytest.raises(VersionConflict, match=f"{MODEL}@1"):
        catalog.save(MODEL, "other", "1")
    with pytest.raises(VersionConflict, match="mutable=True"):
        catalog.save(MODEL, "other", "1", on_conflict="overwrite")
    assert catalog.save(MODEL, "other", "1", on_conflict="skip") == catalog.info(MODEL, "1")
    assert catalog.load(MODEL) == "one"
    mutable = Catalog(catalog.store, mutable=True)
    with pytest.raises(VersionConflict, match="on_conflict='overwrite'"):
        mutable.save(MODEL, "other", "1")
    mutable.save(MODEL, "other", "1", on_conflict="overwrite")
    assert catalog.load(MODEL) == "other"
    assert catalog.list_versions(MODEL) == ["1"]


def test_a_catalog_that_keeps_one_version(catalog):
    """Without versions, an object has only one, which only a mutable catalog replaces."""
    single = Catalog(catalog.store, versioned=False)
    single.save("settings", {"a": 1})
    with pytest.raises(VersionConflict, match="mutable=True"):  # not another version
        single.save("settings", {"a": 2})
    with pytest.raises(ValueError, match="keeps one version"):
        single.save("settings", {"a": 2}, "2")
    mutable = Catalog(catalog.store, versioned=False, mutable=True)
    mutable.save("settings", {"a": 2})
    mutable["settings"] = {"a": 3}
    assert single.load("settings") == {"a": 3}
    assert single.list_versions("settings") == ["1"]


def test_a_catalog_is_a_mapping(catalog):
    """Objects are read, saved, and removed as items; iteration yields their names."""
    catalog[MODEL] = "one"
    catalog[f"{MODEL}@2.1"] = "two"
    catalog["other"] = 3
    assert catalog[MODEL] == "two"
    assert catalog[f"{MODEL}@1"] == "one"
    assert (MODEL in catalog, f"{MODEL}@2.1" in catalog, f"{MODEL}@3" in catalog) == (1, 1, 0)
    assert list(catalog) == [MODEL, "other"]
    assert len(catalog) == 2
    with pytest.raises(VersionConflict):
        catalog[f"{MODEL}@2.1"] = "again"
    del catalog[f"{MODEL}@2.1"]
    assert catalog[MODEL] == "one"
    del catalog[MODEL]
    assert catalog.get(MODEL, "nothing") == "nothing"
    with pytest.raises(KeyError):
        del catalog[MODEL]


def test_what_is_missing(catalog):
    """A missing object or version is an ObjectNotFound: a KeyError and a FileNotFoundError."""
    catalog.save(MODEL, 1)
    for name, version in ((MODEL, "7"), (MODEL, "production"), ("none", "latest"), ("none", 1)):
        assert not catalog.has_object(name, version)
        for error in (ObjectNotFound, KeyError, FileNotFoundError):
            with pytest.raises(error, match=name):
                catalog.load(name, version)
        with pytest.raises(ObjectNotFound):
            catalog.remove(name, version)
    assert catalog.has_object(MODEL)
    assert catalog.has_object(MODEL, "1")
    with pytest.raises(ObjectNotFound):
        catalog.info("none")
    assert catalog.list_versions("none") == []


def test_info(catalog):
    """`info` describes one version, all of an object, or everything, and loads nothing."""
    catalog.save(MODEL, "one", metadata={"stage": "test", "n": [1, None, 2.5]})
    catalog.save(MODEL, BIG, metadata={"stage": "prod"})
    catalog.save("other", 1)
    one = catalog.info(MODEL, "1")
    assert (one.version, one.type, one.metadata["n"]) == ("1", "str", [1, None, 2.5])
    assert 0 < one.size < 100
    assert [record.version for record in catalog.info(MODEL)] == ["1", "2"]
    assert catalog.info(MODEL, "latest").size >= BIG.nbytes
    every = catalog.info()
    assert {name: [r.version for r in every[name]] for name in every} == {
        MODEL: ["1", "2"],
        "other": ["1"],
    }


def test_tags(catalog):
    """A tag points to one version at a time, and is deleted with it."""
    for value in ("one", "two", "three"):
        catalog.save(MODEL, value)
    catalog.tag(MODEL, "production", "1")
    assert catalog.load(MODEL, "production") == catalog[f"{MODEL}@production"] == "one"
    catalog.tag(MODEL, "production", 2)
    catalog.tag(MODEL, "newest")
    assert catalog.tags(MODEL) == {"production": "2", "newest": "3"}
    assert catalog.info(MODEL, "2").tags == ("production",)
    assert catalog.untag(MODEL, "newest")
    assert not catalog.untag(MODEL, "newest")
    catalog.remove(MODEL, "production")
    assert catalog.tags(MODEL) == {}
    assert catalog.list_versions(MODEL) == ["1", "3"]
    with pytest.raises(ObjectNotFound):
        catalog.tag(MODEL, "production", "2")


def test_batches(catalog):
    """Items of a list are saved and loaded independently; each failure is reported by name."""
    catalog.save("b", "taken", "2")
    saved = catalog.save(["a", "b", "", "big"], [1, 2, 3, BIG], ["1", "2", "1", "1"])
    assert saved.succeeded == ["a@1", "big@1"]
    assert saved.failed == ["b@2", "@1"]
    assert isinstance(saved.errors["b@2"], VersionConflict)
    assert isinstance(saved.errors["@1"], ValueError)
    assert [record and record.version for record in saved.results] == ["1", None, None, "1"]
    loaded = catalog.load(["a", "none", "b", "big"])
    assert loaded.results[:3] == [1, None, "taken"]
    assert np.array_equal(loaded.results[3], BIG)
    assert loaded.failed == ["none"]
    assert isinstance(loaded.errors["none"], ObjectNotFound)
    removed = catalog.remove(["a", "none", "b", "a/.."], [None, None, "2", "1"])
    assert removed.results == [1, None, 1, None]
    assert removed.failed == ["none", "a/..@1"]
    assert catalog.list_objects() == ["big"]


# -- object stores


def test_names_are_listed_by_pattern(catalog):
    """Names are listed by prefix and by pattern."""
    names = ["images/cat.png", "images/dog.png", "images/old/cat.png", "notes:a"]
    catalog.save(names, [1, 2, 3, 4]).raise_first()
    assert catalog.list_objects() == names
    assert catalog.list_objects("images/") == names[:3]
    assert catalog.list_objects(pattern="*cat.png") == [names[0], names[2]]
    assert catalog.list_objects("images/o", pattern="*cat*") == [names[2]]
    assert catalog.list_objects("none") == []


def test_what_is_removed_is_gone(catalog):
    """Removing a version or an object keeps other objects; no version number is reused."""
    catalog.save(["a", "b"], [1, 2]).raise_first()
    catalog.save("a", 3)
    assert catalog.remove("a", "latest") == 1
    assert catalog.load("a") == 1
    catalog.save("a", 4)
    assert catalog.remove("a") == 2
    assert catalog.list_objects() == ["b"]
    assert catalog.save("a", 5).version == "4"
    catalog.remove("a", "4")
    assert catalog.save("a", 6).version == "5"


def test_buckets(catalog):
    """A bucket has a separate namespace, and is removed with its objects only by force."""
    team = catalog.create_bucket("team-a")
    assert catalog.bucket("team-a").list_objects() == []
    assert catalog.create_bucket("team-a").name == "team-a"
    team.save(MODEL, "theirs")
    catalog.save(MODEL, "ours")
    catalog.bucket("team-b").save(MODEL, 1)
    assert (team.load(MODEL), catalog.load(MODEL)) == ("theirs", "ours")
    assert catalog.buckets() == ["default", "team-a", "team-b"]
    with pytest.raises(BucketNotEmpty, match=f"has 1 object, such as '{MODEL}'"):
        catalog.remove_bucket("team-a")
    assert team.load(MODEL) == "theirs"
    catalog.remove_bucket("team-a", force=True)
    assert catalog.buckets() == ["default", "team-b"]
    assert MODEL not in team
    assert catalog.load(MODEL) == "ours"
    with pytest.raises(ObjectNotFound):
        catalog.remove_bucket("team-a")
    catalog.create_bucket("team-a")
    catalog.remove_bucket("team-a")


def test_finding_by_metadata(catalog):
    """Records are found by name, type, metadata, time, and size."""
    catalog.save("a:model", {"w": 1}, metadata={"stage": "prod", "score": {"f1": 0.9, "n": 10}})
    catalog.save("b:model", {"w": 2}, metadata={"stage": "test", "score": {"f1": 0.9}})
    then = catalog.save("b:model", BIG, metadata={"stage": "prod"}).created
    labels = lambda **wanted: [record.label for record in catalog.find(**wanted)]
    assert labels() == ["a:model@1", "b:model@1", "b:model@2"]
    assert labels(metadata={"stage": "prod"}) == ["a:model@1", "b:model@2"]
    assert labels(metadata={"score": {"f1": 0.9}}) == ["a:model@1", "b:model@1"]
    assert labels(metadata={"score": {"f1": 0.9, "n": 10}, "stage": "prod"}) == ["a:model@1"]
    assert labels(metadata={"score": None}) == labels(metadata={"stage": ["prod"]}) == []
    assert labels(prefix="b:", type="dict") == labels(prefix="b", type=dict) == ["b:model@1"]
    assert labels(since=then) == labels(larger_than=1_000_000) == ["b:model@2"]
    assert labels(since=datetime.fromtimestamp(then + 1, timezone.utc)) == []


def test_statistics(catalog):
    """Totals count objects, versions, and bytes, by type."""
    assert catalog.stats() == CatalogStats()
    catalog.save(["b", "a", "a"], [2, 1, BIG]).raise_first()  # the newest isn't the last by name
    stats = catalog.stats()
    assert (stats.objects, stats.versions, stats.types) == (2, 3, {"int": 2, "ndarray": 1})
    assert stats.size >= BIG.nbytes
    assert stats.newest == max(record.created for record in catalog.find())


def test_copies(catalog):
    """A copy has the original's content and metadata, and outlives it."""
    catalog.save("a", BIG, "2.1", metadata={"stage": "test"})
    copied = catalog.copy("a", "b")
    assert (copied.version, copied.metadata, copied.type) == ("2.1", {"stage": "test"}, "ndarray")
    assert copied.digest == catalog.info("a", "2.1").digest
    team = catalog.bucket("team-a")
    assert catalog.copy("a", "a", "2.1", target_version=1, catalog=team).bucket == "team-a"
    elsewhere = Catalog(MemoryStore())
    catalog.copy("b", "b", catalog=elsewhere)
    catalog.remove("a")
    for copy in (catalog["b"], team["a"], elsewhere["b"]):
        assert np.array_equal(copy, BIG)
    with pytest.raises(VersionConflict, match="pass another name or target_version"):
        catalog.copy("b", "b")


def test_computed_once(catalog):
    """An existing object isn't computed; a computed one is saved, and returned as if loaded."""
    calls = []

    def compute(value, factor=1):
        calls.append(value)
        return value * factor

    for _ in range(2):
        assert catalog.get_or_compute("a", "2.1", compute, 20, factor=2) == 40
    assert catalog.get_or_compute("a", None, compute, 1) == 40
    assert catalog.get_or_compute("b", None, compute, 7) == 7
    for _ in range(2):
        assert catalog.get_or_compute("t", None, compute, (1, [2, (3,)])) == catalog.load("t")
    assert calls == [20, 7, (1, [2, (3,)])]
    assert catalog.load("a", "2.1") == 40
    with pytest.raises(ZeroDivisionError):
        catalog.get_or_compute("c", None, lambda: 1 / 0)
    assert "c" not in catalog


def test_what_is_computed_gets_no_number_of_a_removed_version(catalog):
    """The first version of an object is computed again after its removal, under a number that no
    version had.
    """
    for number, value in enumerate("abc", 1):
        assert catalog.get_or_compute("a", None, str, value) == value
        assert catalog.list_versions("a") == [str(number)]
        catalog.remove("a")
    single = Catalog(catalog.store, versioned=False)
    for value in "de":
        assert single.get_or_compute("a", None, str, value) == value
        single.remove("a")


def test_any_argument_can_be_passed_on(catalog):
    """The function that computes may have parameters of any name."""
    compute = lambda name, version, fn: [name, version, fn]
    found = catalog.get_or_compute("a", "1", compute, name="n", version=2, fn=None)
    assert found == ["n", 2, None]


def test_a_reference_is_saved_without_its_content(catalog):
    """A reference to a stored value is saved as that value, which isn't serialized again."""
    catalog.save("a", BIG)
    ref = catalog.ref("a")
    catalog.remove("a")
    saved = catalog.save("b", ref)
    assert saved.digest == ref.digest
    assert np.array_equal(catalog.load("b"), BIG)
