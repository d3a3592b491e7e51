"""The catalog of an app: its store, its serializers, and references in its tasks."""

from __future__ import annotations

import numpy as np
import pytest

from offload import Catalog, ConfigurationError, SerializationError
from tests.support.wire import make_wire

BIG = np.arange(200_000)


class Opaque:
    def __eq__(self, other):
        return isinstance(other, Opaque)

    __hash__ = None


@pytest.fixture
def wire():
    wire = make_wire()

    @wire.app.task(name="total", shared=False)
    def total(frame):
        return int(frame.sum())

    return wire


def test_a_task_gets_the_version_that_was_the_latest(wire):
    """A reference stands for a version; the task receives its content, whatever comes later."""
    catalog = wire.hook.catalog
    catalog.save("frame", BIG)
    result = wire.app.tasks["total"].delay(catalog.ref("frame"))
    catalog.save("frame", BIG[:2])
    wire.work()
    assert result.get() == BIG.sum()
    assert wire.app.tasks["total"].delay(catalog.ref("frame")).id
    wire.work()


def test_a_sent_reference_outlives_its_version(wire):
    """A version that is removed while a message refers to it is still there for the task."""
    catalog = wire.hook.catalog
    catalog.save("frame", BIG)
    result = wire.app.tasks["total"].delay(catalog.ref("frame"))
    catalog.remove("frame")
    wire.work()
    assert result.get() == BIG.sum()


def test_the_catalog_is_in_the_apps_store(wire):
    """The app's catalog and one of its store are the same."""
    wire.hook.catalog.save("a", 1)
    assert wire.hook.catalog.store is wire.hook.store
    assert Catalog(wire.hook.store).load("a") == 1
    assert wire.hook.catalog.bucket("team").buckets() == ["default"]


@pytest.mark.parametrize("cached", (False, True))
def test_options_of_a_catalogs_own_store(tmp_path, cached):
    """Without an app, options of the store and sizes of tiers apply to the URL, as in the settings;
    an open store has its own.
    """
    local = {"cache_dir": tmp_path / "copies"} if cached else {}
    options = {"global_keyprefix": "shop:", "virtual_host": 3}
    alone = Catalog("redis://h", store_options=options, **local)
    assert alone.store.url == "redis://h/3?prefix=shop:offload"
    urls = [f"memory://{tmp_path}", f"file://{tmp_path}/a", f"file://{tmp_path}/b"]
    tiers = Catalog(urls, store_options=[{}, {"mode": "0660"}, {}], tier_sizes=(10, 100), **local)
    assert len(tiers.store.tiers) == 3
    with pytest.raises(ConfigurationError, match="unknown option 'nonsense'"):
        Catalog("redis://h", store_options={"nonsense": 1}, **local)
    for given in ({"store_options": options}, {"tier_sizes": (10,)}):
        with pytest.raises(ConfigurationError, match="pass it to open_store"):
            Catalog(tiers.store, **given, **local)


@pytest.mark.parametrize("accept", (["json"], ["json", "pickle"]))
def test_what_the_app_accepts_is_saved(accept):
    """Objects that only pickle supports are saved if the app accepts pickle."""
    catalog = make_wire(conf={"accept_content": accept}).hook.catalog
    if "pickle" in accept:
        catalog.save("a", Opaque())
        assert catalog.load("a") == Opaque()
    else:
        with pytest.raises(SerializationError):
            catalog.save("a", Opaque())
        assert catalog.list_objects() == []


def test_a_result_is_saved_by_its_reference(wire):
    """A reference that the app made is saved as its value, which outlives the reference's hold."""
    ref = wire.hook.put(BIG, retention=1)
    record = wire.hook.catalog.save("frame", ref)
    assert record.digest == ref.digest
    assert np.array_equal(wire.hook.catalog.load("frame"), BIG)
    assert record.holder in wire.hook.store.blobs.holders(ref.digest)
