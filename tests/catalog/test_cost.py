"""Numbers of round trips and requests, which must not grow with the amount of stored data."""

from __future__ import annotations

import json

import pytest

from offload import Catalog
from offload.catalog.names import name_pointer, record_pointer
from offload.catalog.records import NameState, Record, seal, write_record, write_state
from offload.content.holds import Hold
from offload.stores.capabilities import TagsWrites
from offload.stores.memory import MemoryPointers, MemoryStore
from tests.support.round_trips import Wire

MANY, SOME = 10_000, 3_000


@pytest.fixture
def wire(redis, monkeypatch):
    return Wire(monkeypatch)


@pytest.fixture
def catalog(make_urls):
    catalog = Catalog(make_urls("redis"))
    catalog.save("first", 0)
    return catalog


def trips_of(wire, call):
    before = wire.trips
    call()
    return wire.trips - before


@pytest.mark.server
def test_a_batch_skips_what_exists_in_one_round_trip(catalog, wire):
    """Objects that already exist cost a batch no additional round trip."""
    names = [f"n:{number}" for number in range(200)]
    versions = ["1"] * len(names)
    save = lambda some: catalog.save(some, [*range(len(some))], versions[: len(some)])
    save(names)
    assert trips_of(wire, lambda: save(names)) == trips_of(wire, lambda: save(names[:1])) == 1
    new = [*names[:100], "new", *names[100:]]
    values, ones = [*range(201)], [*versions, "1"]
    with_others = trips_of(wire, lambda: catalog.save(new, values, ones))
    assert catalog.load("new") == 100
    alone = trips_of(wire, lambda: catalog.save(["other"], [100], ["1"]))
    assert with_others == alone


@pytest.mark.server
def test_content_that_is_stored_already_is_held_in_one_round_trip(catalog, wire):
    """New objects with known content are saved without uploads, held together."""
    values = [list(range(number)) for number in range(50)]
    save = lambda prefix: catalog.save([f"{prefix}:{n}" for n in range(50)], values)
    first = trips_of(wire, lambda: save("a"))
    assert trips_of(wire, lambda: save("b")) == first - 50


@pytest.mark.server
def test_a_batch_is_loaded_in_a_few_round_trips(catalog, wire):
    """States, records, and small values of a batch are read together."""
    names = [f"n:{number}" for number in range(100)]
    catalog.save(names, names).raise_first()
    assert trips_of(wire, lambda: catalog.load(names).raise_first()) == 3
    assert trips_of(wire, lambda: catalog.load(names[:1]).raise_first()) == 3
    assert trips_of(wire, lambda: catalog.load("n:1", "1")) == 2


@pytest.mark.server
def test_ten_thousand_objects_are_searched_in_a_hundred_round_trips(catalog, wire):
    """On Redis, a search of 10,000 objects takes about a hundred round trips."""
    client = catalog.store.client
    key = f"{client.prefix}:pointer:"
    fill(catalog, MANY, lambda all_: client.run([("SET", key + p, v) for p, v in all_.items()]))
    assert trips_of(wire, lambda: found(catalog)) < 100
    assert len(found(catalog)) == MANY // 10


def found(catalog):
    return catalog.find(metadata={"stage": "prod"})


def fill(catalog, number, write):
    """Write the pointers of objects, a tenth of them in stage ``prod``."""
    first = catalog.info("first", "1")
    keys = catalog._content().signing.keys
    values = {}
    for at in range(number):
        metadata = {"stage": "prod" if at % 10 == 0 else "test", "n": at}
        record = Record(**{**vars(first), "name": f"group{at % 7}:{at}", "metadata": metadata})
        pointer = record_pointer("default", record.name, "1")
        values[pointer] = write_record(record, pointer, keys)
        state = name_pointer("default", record.name)
        values[state] = write_state(NameState(frozenset({"1"})), state, keys)
    write(values)


# -- where reading a pointer takes a request


class SlowPointers(MemoryPointers):
    """Pointers as S3 has them: a list of a thousand is a request, and so is each value."""

    def __init__(self):
        super().__init__()
        self.requests = 0
        self.tags = {}

    def read(self, name):
        self.requests += 1
        return super().read(name)

    def swap(self, name, expected, value):
        done = super().swap(name, expected, value)
        if done:
            self.tags[name] = f"tag {len(self.tags)} {value!r:.20}"
        return done

    def names(self, prefix=""):
        return (name for name, _ in self.tagged_names(prefix))

    def tagged_names(self, prefix=""):
        names = list(super().names(prefix))
        self.requests += 1 + len(names) // 1000
        return ((name, self.tags[name]) for name in names)


@pytest.fixture
def slow():
    store = MemoryStore()
    store.pointers = SlowPointers()
    assert isinstance(store.pointers, TagsWrites)
    catalog = Catalog(store)
    catalog.save("first", 0)
    pointers = store.pointers
    fill(catalog, SOME, lambda all_: [pointers.swap(p, None, v) for p, v in all_.items()])
    assert len(found(catalog)) == SOME // 10
    return catalog


def requests_of(catalog, call):
    pointers = catalog.store.pointers
    before = pointers.requests
    call()
    return pointers.requests - before


def test_a_search_reads_an_index_and_what_has_changed(slow):
    """If reading takes one request per record, a search reads the index and only new records."""
    assert requests_of(slow, lambda: found(slow)) <= 8
    slow.save("new", 1, metadata={"stage": "prod"})
    slow.remove("group0:0")
    assert requests_of(slow, lambda: found(slow)) <= 12
    assert [record.name for record in slow.find("new")] == ["new"]
    names = [f"n:{number}" for number in range(200)]
    slow.save(names, names).raise_first()
    assert len(slow.find("n:")) == 200
    assert requests_of(slow, lambda: slow.find("n:")) <= 5
    assert requests_of(slow, lambda: found(slow)) <= 12


def test_another_process_uses_the_index(slow):
    """The index is in the store, so a new process needs just as few requests."""
    other = Catalog(slow.store)
    assert requests_of(other, lambda: found(other)) <= 9


@pytest.mark.parametrize("damage", ("lost", "altered", "content"))
def test_a_lost_index_is_written_again(slow, damage):
    """If the index is lost or altered, a search finds the same, and writes a new one."""
    pointers = slow.store.pointers
    expected = found(slow)
    if damage == "content":
        slow.store.blobs.delete([info.digest for info in slow.store.blobs.scan()])
    else:
        before = pointers.read("catalog-indexes/default")
        after = None if damage == "lost" else before[:-9] + b"!" + before[-8:]
        assert pointers.swap("catalog-indexes/default", before, after)
    assert found(slow) == expected
    assert requests_of(slow, lambda: found(slow)) <= 8


@pytest.mark.parametrize("wrong", (5, None, "\ud800", ["x"]))
def test_an_index_of_anything_else_is_written_again(slow, wrong):
    """A signed index whose records aren't texts, or that is nested too deeply, is ignored."""
    pointers, content = slow.store.pointers, slow._content()
    expected, name = found(slow), "catalog-indexes/default"
    tags = dict(pointers.tagged_names("catalog/"))
    for text in (json.dumps([[p, tag, wrong] for p, tag in tags.items()]), "[" * 100_000):
        ref = content.writer.put(text, celery_serializer="json", hold=Hold(60.0))
        value = seal(name, {"format": 1, "ref": ref.wire}, content.signing.keys)
        assert pointers.swap(name, pointers.read(name), value)
        assert found(slow) == expected


def test_an_overwritten_record_is_read_again(slow):
    """A search finds the current state of a record that was overwritten after indexing."""
    Catalog(slow.store, mutable=True).save(
        "group1:1", 5, "1", metadata={"stage": "new"}, on_conflict="overwrite"
    )
    assert [record.name for record in slow.find(metadata={"stage": "new"})] == ["group1:1"]


@pytest.mark.server
def test_a_search_on_s3_takes_a_few_requests(make_urls, monkeypatch):
    """On S3, a search sends requests for the list, the index, and what has changed."""
    catalog = Catalog(make_urls("s3"))
    catalog.save("first", 0)
    store = catalog.store
    fill(catalog, 60, lambda all_: write_on_s3(store, all_))
    assert len(found(catalog)) == 6
    asked = []
    ask = store.client.ask

    def counted(operation, *args, **kwargs):
        asked.append(operation)
        return ask(operation, *args, **kwargs)

    monkeypatch.setattr(store.client, "ask", counted)
    monkeypatch.setattr("offload.catalog.search._REWRITE", 20)
    assert len(found(catalog)) == 6
    assert asked.count("get_object") > 60
    asked.clear()
    assert len(found(catalog)) == 6
    assert sorted(set(asked)) == ["get_object", "list_objects_v2"]
    assert len(asked) <= 4
    catalog.save("new", 1, metadata={"stage": "prod"})
    asked.clear()
    assert len(found(catalog)) == 7
    assert len(asked) <= 5


def write_on_s3(store, values):
    names = [name for name in values if name.startswith("catalog/")]
    store.client.threads.each(lambda name: store.pointers.swap(name, None, values[name]), names)
