"""Records of remembered results, in a store in memory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from offload.content.holds import Hold
from offload.content.manifest import pack
from offload.gc import sweep
from offload.memo.records import (
    Record,
    Within,
    forget_record,
    forget_records,
    list_records,
    open_result,
    read_record,
    record_holder,
    record_name,
    sweep_records,
    write_record,
)
from offload.ref import Keys
from offload.stores.memory import MemoryStore
from tests.support.content import make_content

KEYS = Keys([b"k" * 32])
OTHERS = Keys([b"o" * 32])
KEY = "0" * 40
WITHIN = {"ref": "", "within": Within(b"root\0", "json", "int", 1)}


def made(task="shop.tasks.report", scope="shop", **more):
    given = {"ref": "offload:1?", "seconds": 1.5, "fence": 7, "created": 1.0, "until": 2e9}
    return Record(record_name(task, scope, KEY), task, scope, **{**given, **more})


@pytest.fixture
def store():
    return MemoryStore("records")


def written(store, record, keys=KEYS):
    assert store.pointers.swap(record.name, None, write_record(record, keys))
    return record


@pytest.mark.parametrize("more", ({}, WITHIN, {**WITHIN, "task": "\ud800"}))
def test_a_record_comes_back_as_written(more):
    """Reading a record returns what was written, if one of the keys signed it."""
    record = made(**more)
    value = write_record(record, KEYS)
    rotated = Keys([*OTHERS.keys, *KEYS.keys])
    for keys in (KEYS, rotated, None):
        assert read_record(record.name, value, keys) == replace(record, size=len(value))


def test_the_format_is_pinned():
    """What is written stays: another format would lose all remembered results."""
    mac = b"979cf32d5179bdddbb0eedc61636460f"
    text = (
        b'{"v": 1, "task": "shop.report", "scope": "shop", "ref": "offload:1?", "seconds": 1.5, '
        b'"fence": 7, "created": 1.0, "until": 2.0}'
    )
    assert record_name("shop.report", "shop", KEY) == f"memo/shop.report/shop/{KEY}"
    assert write_record(made("shop.report", until=2.0), KEYS) == mac + b" " + text
    mac = b"57f075a9127ce1d432d4b354465731f4"
    text = (
        b'{"v":2,"task":"shop.report","scope":"shop","seconds":1.5,"fence":7,"created":1.0,'
        b'"until":2.0,"root":"cm9vdAA=","serializer":"json","type":"int","bytes":1}'
    )
    assert write_record(made("shop.report", until=2.0, **WITHIN), KEYS) == mac + b" " + text


@pytest.mark.parametrize(
    "change",
    (
        lambda name, value: (name, value.replace(b"1.5", b"2.5")),
        lambda name, value: (name.replace(KEY, "1" * 40), value),
        lambda name, value: (name, write_record(made(), OTHERS)),
        lambda name, value: (name, write_record(made(**WITHIN), KEYS).replace(b"cm9v", b"cm9w")),
        lambda name, value: (name, value[:-1]),
        lambda name, value: (name, b""),
        lambda name, value: (name, b"\xff" * 50),
        lambda name, value: (name, "é".encode() + value[1:]),
        lambda name, value: (name, b"0" * 32 + b" " + b"[" * 50_000),
    ),
)
def test_a_record_that_was_tampered_with_is_none(change):
    """A record isn't read if anything in it was changed, or if it was signed for another name."""
    name, value = change(made().name, write_record(made(), KEYS))
    assert read_record(name, value, KEYS) is None


@pytest.mark.parametrize("field", ("task", "seconds", "fence", "until", "ref"))
@pytest.mark.parametrize("wrong", (None, [], float("inf"), float("nan")))
def test_a_record_with_a_wrong_field_is_none(field, wrong):
    """Fields of a wrong type, or numbers that aren't finite, make a record unreadable."""
    record = replace(made(), **{field: wrong})
    assert read_record(record.name, write_record(record, KEYS)) is None


@pytest.mark.parametrize("version", ([1], {}, "1", 1.0, True, None, 10**400))
def test_a_record_of_no_known_version_is_none(store, version):
    """Whatever stands in the version's place, a record is none, and a list or a sweep goes on."""
    name, value = made().name, write_record(made(), KEYS)
    _, _, text = value.partition(b" ")
    changed = b"0 " + json.dumps({**json.loads(text), "v": version}).encode()
    assert read_record(name, changed) is None
    store.pointers.swap(name, None, changed)
    assert list(list_records(store)) == list(sweep_records(store, lambda: 1e12)) == []


@pytest.mark.parametrize("wrong", (None, [], 1.5, True))
@pytest.mark.parametrize("field", Within._fields[1:])
def test_a_record_that_contains_a_wrong_result_is_none(field, wrong):
    """Fields of a wrong type make a record unreadable that contains its result."""
    record = made(ref="", within=WITHIN["within"]._replace(**{field: wrong}))
    assert read_record(record.name, write_record(record, KEYS)) is None


@pytest.mark.parametrize(
    "task", ("tasks.add", "tasks.<locals>.add", "ä", "a/b", "..", "", "=x", "x" * 300, "\ud800")
)
@pytest.mark.parametrize("scope", ("app", "Ünit", "s" * 100))
def test_any_task_and_scope_has_a_name(store, task, scope):
    """Whatever tasks and scopes are called, their records are written, listed, and forgotten."""
    record = written(store, made(task, scope))
    other = written(store, made(task + "2", scope))
    assert record.name in {each.name for each in list_records(store, task)}
    content = make_content(store)
    assert forget_records(content, task, 1.0) == 1
    assert [each.name for each in list_records(store)] == [other.name]


def test_records_are_listed_by_task(store):
    """A listing has the records of the tasks whose names start with the prefix, and no others."""
    for task in ("shop.a", "shop.<b>", "other"):
        written(store, made(task))
    store.pointers.swap("memo/shop.a/app/junk", None, b"junk")
    assert {each.task for each in list_records(store)} == {"shop.a", "shop.<b>", "other"}
    assert {each.task for each in list_records(store, "shop.")} == {"shop.a", "shop.<b>"}


def test_forgetting_a_scope_leaves_the_others(store):
    """Forgetting a task's results in one scope leaves those of other scopes and tasks."""
    kept = [written(store, made(scope="b")), written(store, made("shop.tasks.report2"))]
    written(store, made(scope="a"))
    assert forget_records(make_content(store), "shop.tasks.report", 1.0, "a") == 1
    assert {each.name for each in list_records(store)} == {each.name for each in kept}


def test_forgetting_ends_the_lease_of_a_computation(store):
    """A computation that is under way loses its lease, so that its result isn't remembered."""
    name = made().name
    store.leases.acquire(name, "worker", 30)
    assert forget_records(make_content(store), "shop.tasks.report", 1.0) == 0
    assert store.leases.read(name) is None


def test_forgetting_releases_the_blobs(store):
    """The blobs of a forgotten result are held no longer."""
    content = make_content(store)
    name = made().name
    holder = record_holder(name, 7)
    ref = content.writer.put(b"x" * 100_000, celery_serializer="json", hold=Hold(1000, holder))
    written(store, made(ref=ref.wire), content.signing.keys)
    assert holder in store.blobs.holders(ref.digest)
    assert forget_record(content, name, 1.0)
    assert holder not in store.blobs.holders(ref.digest)
    assert not forget_record(content, name, 1.0)


def test_a_result_is_read_from_its_record_or_by_its_reference(store):
    """A small result is in its record, or in a reference as earlier versions wrote it."""
    content = make_content(store)
    payload = content.serializers.encode_exactly([5])
    root = b"".join(pack(payload, whole=True).root)
    within = Within(root, payload.serializer, payload.type, payload.size)
    for given in ({"ref": "", "within": within}, {"ref": content.writer.embed(payload).wire}):
        ref = open_result(content, made(**given))
        assert (ref.get(), ref.size, ref.digest) == ([5], 3, None)


def test_a_sweep_deletes_expired_records(store):
    """A sweep deletes the records that expired more than a minute ago; a dry run deletes none."""
    old = written(store, made(until=1000.0))
    new = written(store, made("new", until=1000.0 + 61))
    for dry_run in (True, False):
        found = list(sweep_records(store, lambda: 1000.0 + 61, dry_run=dry_run))
        assert [each.name for each in found] == [old.name]
    assert [each.name for each in list_records(store)] == [new.name]


def test_gc_sweeps_records(store):
    """The sweep of a store includes its records."""
    written(store, made(until=1000.0))
    assert sweep(store).kinds["pointer"].count == 1
    assert not list(list_records(store))
