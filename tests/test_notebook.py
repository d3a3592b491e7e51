"""What notebooks show of references, catalogs, and statistics."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from offload import BlobMissing, Catalog, Ref
from offload.catalog import BatchResult
from offload.catalog.batches import label_of
from offload.stores.memory import MemoryStore
from offload.text import ROWS, facts, table
from tests.support.wire import make_wire

NASTY = "<script>alert('&')</script>"


class Texts(HTMLParser):
    """Collects the tags and the text of HTML, and fails where tags aren't closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], set(), []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"style"}
        assert "color" not in str(attrs)  # the notebook's own, dark or light

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def texts(shown):
    """Return the texts in the HTML of an object."""
    found = Texts(shown if isinstance(shown, str) else shown._repr_html_())
    assert found.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "b", "p"}
    return found.text


@pytest.fixture
def catalog():
    return Catalog(MemoryStore("notebook"), author=NASTY)


def test_text_is_escaped_and_short():
    """No text becomes markup or controls, and a long one is cut."""
    shown = facts(NASTY, {NASTY: NASTY, "bell": "\a\u202e", "long": "x" * 1000, "none": None})
    assert texts(shown)[:3] == [NASTY, NASTY, NASTY]
    assert "script>" not in shown
    assert r"\x07\u202e" in shown
    assert "none" not in shown
    assert len(shown) < 1500


def test_long_tables_are_cut():
    """A table has at most so many rows, says how many more there are, and reads no more."""
    rows = iter([(NASTY, n) for n in range(1000)])
    shown = texts(table("many", ["name", "number"], rows, 1000))
    assert shown[-1] == f"… and {1000 - ROWS:,} more"
    assert shown.count(NASTY) == ROWS
    assert len([*rows]) >= 1000 - ROWS - 1


def test_references_show_what_they_refer_to_and_no_signature():
    """A reference shows type, size, and digest; what could redeem it isn't shown, nor fetched."""
    wire = make_wire()
    ref = wire.hook.put(["row"] * 1000)
    before = len(wire.calls)
    shown = ref._repr_html_()
    assert len(wire.calls) == before
    assert {"list", ref.digest} <= {*texts(shown)}
    mac = re.search(r"m=([0-9a-f]{32})", ref.wire)[1]
    assert mac not in shown
    assert "value in this process" in texts(Ref.local([NASTY]))[0]
    assert NASTY not in Ref.local([NASTY])._repr_html_()


def test_references_that_are_not_verified_are_escaped():
    """What an unverified reference claims is data from elsewhere."""
    forged = Ref.unbound("offload:1?t=%3Cscript%3Ealert%3C/script%3E&n=5")
    assert "not verified" in texts(forged)[0]
    assert "<script" not in forged._repr_html_()


def test_catalogs_list_names_and_load_nothing(catalog):
    """A catalog shows its objects' names; lists of versions, their records; no value is read."""
    for version in ("1", "2"):
        catalog.save("model", [1] * 1000, version, metadata={"note": NASTY})
    catalog.save("other", "text")
    blobs = catalog.store.blobs
    blobs.get = None
    assert {"model", "other"} <= {*texts(catalog)}
    assert {"1", "2", "list", NASTY} <= {*texts(catalog.info("model"))}
    assert {"model", "other"} <= {*texts(catalog.info())}
    assert {"model", "other"} <= {*texts(catalog.find())}
    assert NASTY in str(texts(catalog.info("model", "2")))
    assert {"2", "3"} <= {*texts(catalog.stats())}
    catalog.tag("model", "live")
    assert {"tags", "live"} <= {*texts(catalog.info("model"))}
    assert "tags" not in texts(catalog.find())  # it doesn't read them
    assert texts(catalog.late("model"))[0] == "Ref, resolved when a task starts"


def test_lists_of_versions_are_lists(catalog):
    """What `info` and `find` return equals plain lists and dicts."""
    catalog.save("model", 1)
    (record,) = found = catalog.find()
    assert found == [record]
    assert catalog.info() == {"model": [record]}
    assert isinstance(found, list)


def test_a_catalog_whose_store_is_unavailable_says_so(catalog, monkeypatch):
    """A notebook shows the error in place of names, and raises nothing."""
    monkeypatch.setattr("offload.catalog.pointers.CatalogPointers.places", fails)
    assert "gone" in str(texts(catalog))


def fails(*_, **__):
    raise BlobMissing("gone")


def test_batches_show_errors_but_no_values():
    """A batch shows which items failed and why; text that could reveal a value isn't shown."""
    batch = BatchResult()
    batch.add("one", "secret")
    batch.add(label_of(NASTY, 2), BlobMissing("no such blob"))
    batch.add("three", ValueError("secret"))
    shown = texts(batch)
    assert shown[0] == "BatchResult: 1 succeeded, 2 failed"
    assert {f"{NASTY}@2", "BlobMissing: no such blob", "ValueError"} <= {*shown}
    assert "secret" not in str(shown)
    del batch.errors[f"{NASTY}@2"], batch.errors["three"]
    batch.failed.clear()
    assert texts(batch) == ["BatchResult: 1 succeeded, 0 failed"]


def test_statistics_show_savings_by_task():
    """`stats` returns the counts of all processes, and shows them by task."""
    wire = make_wire()

    @wire.app.task(name=NASTY, shared=False)
    def task(value):
        return None

    wire.run(task, ["row"] * 1000)
    wire.hook.put(["line"] * 1000)
    found = wire.hook.stats()
    assert found.total["values_offloaded"] == 2
    shown = texts(found)
    assert {NASTY, "(outside tasks)", "kept out of messages", "none"} <= {*shown}
    assert "since" in texts(wire.hook.stats("1h"))[0]
