"""Pages of the catalog, requested without a browser."""

from __future__ import annotations

import re

import pytest

from offload.text import human_size
from tests.dashboard.test_stores import rows

pytestmark = pytest.mark.server

NAME = "churn:model"
HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def catalog(shop):
    return shop.hook.catalog


def names(page):
    return [row[0] for row in rows(page, "Objects")]


def test_objects_are_listed_and_found(shop, catalog):
    """Each object has a row; words search in names, types, and metadata."""
    catalog.save([NAME, NAME, "churn:frame"], [["a"] * 1000, ["b"], "text"], metadata={"n": 5})
    catalog.save("other", b"x", metadata={"stage": "prod"})
    client = shop.client()
    page = client.get("/catalog").text
    assert names(page) == ["churn:frame", NAME, "other"]
    row = rows(page, "Objects")[1]
    assert row[1:4] == ["2", "2", "list"]
    assert row[7] == '{"n": 5}'
    searches = {
        "CHURN": ["churn:frame", NAME],
        "churn type=list": [NAME],
        "stage=prod": ["other"],
        "n=5 frame": ["churn:frame"],
        "n=6": [],
    }
    for text, expected in searches.items():
        assert names(client.get("/catalog", params={"q": text}).text) == expected, text


def test_usage_is_shown(shop, catalog):
    """An object's row and page tell how often it was used, for what, and when last."""
    catalog.save([NAME, "unused"], [["a"], 1])
    catalog.load(NAME)
    catalog.load(NAME)
    catalog.ref(NAME)
    client = shop.client()
    found = {row[0]: row for row in rows(client.get("/catalog").text, "Objects")}
    assert found[NAME][-2] == "3"
    assert "UTC" in found[NAME][-1]
    assert found["unused"][-2:] == ["0", "-"]
    page = re.sub("(<[^>]*>)+", " ", client.get("/object", params={"name": NAME}).text)
    assert "Loaded 2 times  0 from copies on the machine; last 90 days " in page
    assert "Passed to tasks 1 time  1 reference, 0 late arguments; last 90 days " in page


def test_versions_and_what_they_share(shop, catalog):
    """An object's page has its versions with tags, stored bytes, and bytes that others share."""
    first = bytes(range(256)) * 40_000
    catalog.save(NAME, [first, b"1" * 100])
    catalog.save(NAME, [first, b"2" * 100], "2.10")
    catalog.save(NAME, "small", "2.9")
    catalog.tag(NAME, "live", "2.9")
    page = shop.client().get("/object", params={"name": NAME}).text
    found = {row[0]: row for row in rows(page, "Versions")}
    assert list(found) == ["2.10", "2.9", "1"]
    assert found["2.9"][1:3] == ["live", "str"]
    blobs = shop.hook.store.blobs
    content = shop.app._offload.content
    stored = {}
    for record in catalog.info(NAME):
        digests = content.holds.digests(content.open(record.ref))
        stored[record.version] = {
            d: peek.size for d, peek in zip(digests, blobs.peek(digests, 1), strict=False)
        }
    common = stored["1"].keys() & stored["2.10"].keys()
    assert common
    for version, sizes in stored.items():
        shared = sum(sizes[digest] for digest in common if digest in sizes)
        assert found[version][4] == human_size(sum(sizes.values()))
        assert found[version][5] == human_size(shared)
        assert found[version][6] == str(len(sizes))


def test_lost_content_is_shown(shop, catalog):
    """A version whose blobs are missing is named with the problem; others stay as they are."""
    catalog.save(NAME, "lost" * 100)
    catalog.save(NAME, "kept" * 100)
    digest = catalog.info(NAME, 1).digest
    shop.hook.store.blobs.delete([digest])
    page = shop.client().get("/object", params={"name": NAME}).text
    refused = re.search(r'aria-label="Refused">(.*?)</section>', page, re.DOTALL)[1]
    assert "<strong>1</strong>" in refused
    assert "<strong>2</strong>" not in refused


def test_other_names_have_no_page(shop, catalog):
    """Unknown, wrong, and missing names and buckets say that there is no such object."""
    client = shop.client()
    for query in ({}, {"name": NAME}, {"name": "../x"}, {"name": NAME, "bucket": "../x"}):
        page = client.get("/object", params=query)
        assert page.status_code == 200
        assert "has no object with this name" in page.text
    assert names(client.get("/catalog", params={"bucket": "../x"}).text) == []


def test_buckets_have_lists_of_their_own(shop, catalog):
    """With several buckets, each is linked, and lists its own objects."""
    catalog.save(NAME, 1)
    catalog.bucket("team-a").save("team:model", 2)
    client = shop.client()
    page = client.get("/catalog").text
    assert names(page) == [NAME]
    assert "?bucket=team-a" in page
    page = client.get("/catalog", params={"bucket": "team-a"}).text
    assert names(page) == ["team:model"]
    assert "/object?bucket=team-a&amp;name=team%3Amodel" in page


def test_hostile_texts_are_escaped(shop, catalog):
    """Names and metadata never become markup."""
    name = f"a{HOSTILE}"
    catalog.save(name.replace("/", "-"), 1, metadata={HOSTILE: HOSTILE})
    catalog.author = HOSTILE
    catalog.save("b", 1, metadata=HOSTILE)
    client = shop.client()
    (shown, _) = names(client.get("/catalog").text)
    for page in (
        client.get("/catalog").text,
        client.get("/catalog", params={"q": HOSTILE, "bucket": HOSTILE}).text,
        client.get("/object", params={"name": shown}).text,
        client.get("/object", params={"name": "b"}).text,
        client.get("/object", params={"name": HOSTILE, "bucket": HOSTILE}).text,
    ):
        assert "<script>alert" not in page


def test_round_trips_do_not_grow_with_objects(shop, catalog, monkeypatch):
    """The list of 600 objects takes as many commands as it has batches of 500 records."""
    many = [f"x:{number}" for number in range(600)]
    catalog.save(many, many).raise_first()
    pointers, read = shop.hook.store.pointers, []
    read_all = pointers.read_all
    monkeypatch.setattr(
        pointers, "read_all", lambda some: (read.append(len(some)), read_all(some))[1]
    )
    assert "(600)" in shop.client().get("/catalog").text
    assert sorted(read) == [100, 500]
