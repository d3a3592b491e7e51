"""Saves that wait survive a kill between any two steps: none is lost, none is saved twice."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from offload import Catalog, IntegrityError
from offload.catalog import offline
from offload.catalog.journal import Entry, _checksum
from offload.errors import StoreUnavailable
from offload.stores.memory import MemoryStore
from tests.catalog.mortal import Killed, Mortal, lives

LARGE = 1200_000  # bytes of a value of two blobs


class Down:
    """Pointers or blobs of a store that is unavailable."""

    tracks_holds = True
    puts_at_once = 1

    def __getattr__(self, name):
        def fail(*args, **options):
            raise StoreUnavailable("down")

        return fail


class Unavailable(Mortal):
    def __init__(self, url):
        self.url = url
        self.blobs = self.pointers = self.leases = Down()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that calls *act* with a catalog, in a process that may be killed."""
    real = offline.content_in
    monkeypatch.setattr(os, "fsync", lambda _number: None)  # these kills lose no written data

    def run(act, remote, life=None):
        def content_in(folder, **options):
            store, content = real(folder, **options)
            if life is None or folder.name != "queue":
                return store, content
            mortal = Mortal(store, life)
            for part in (content, content.holds, content.reader, content.writer):
                for name in ("store", "_store"):
                    if hasattr(part, name):
                        setattr(part, name, mortal)
            return mortal, content

        monkeypatch.setattr(offline, "content_in", content_in)
        store = remote if life is None else Mortal(remote, life)
        options = {"retry": {"max_retries": 0}, "secret": "s" * 32}
        return act(Catalog(store, cache_dir=tmp_path, offline="queue", **options))

    return run


def test_a_saver_killed_anywhere(run):
    """A save that is killed while it is queued waits, or never was; one that returned waits."""
    there, down = MemoryStore("there"), Unavailable("memory://there")
    kept = []
    for number, life in enumerate(lives()):
        value = os.urandom(9000)
        store = Mortal(down, life)
        try:
            run(lambda catalog, value=value: catalog.save("a", value), store, life)
        except Killed:
            pass
        else:
            kept.append(value)
            break
        kept.append(None)
        assert number < 200
    run(lambda catalog: catalog.sync(), there)
    saved = [Catalog(there, secret="s" * 32).load("a", number) for number in versions(there)]
    assert saved[-1] == kept[-1]
    assert len(set(saved)) == len(saved)
    assert len(saved) < len(kept)


def versions(store):
    return Catalog(store, secret="s" * 32).list_versions("a")


def test_a_sync_killed_anywhere(run):
    """Whatever call a sync is killed at, the next one saves the rest, in order, and once."""
    down = Unavailable("memory://there")
    number = 0
    for life in lives():
        number += 1
        there = MemoryStore("there")
        values = [os.urandom(LARGE), b"x" * 500]
        for value in values:
            run(lambda catalog, value=value: catalog.save("a", value), down)
        try:
            run(lambda catalog: catalog.sync(), there, life)
        except Killed:
            result = run(lambda catalog: catalog.sync(), there)
            assert not result.errors
        else:
            break
        catalog, found = Catalog(there, secret="s" * 32), versions(there)
        assert found in (["1", "2"], ["1", "3"], ["2", "3"])  # a kill may lose a number it took
        assert [catalog.load("a", each) for each in found] == values
        assert run(lambda catalog: catalog.waiting, there) == 0
    assert number > 40


ENTRY = {
    "bucket": "default",
    "name": "a",
    "key": "1",
    "shown": "1",
    "metadata": None,
    "on_conflict": "error",
    "overwrites": False,
    "author": "me",
    "created": 1.0,
    "nonce": "0123456789ab",
    "tried": True,
    "digest": f"b3:{0:064x}",
    "size": 1,
    "serializer": "raw",
    "type": "str",
}


@pytest.mark.parametrize(
    ("field", "wrong"),
    (
        ("bucket", 5),
        ("name", None),
        ("key", 5),
        ("digest", 5),
        ("digest", "../x"),
        ("size", "x"),
        ("size", -1),
        ("size", 10**400),
        ("created", "x"),
        ("created", 10**400),
        ("created", float("nan")),
        ("nonce", []),
        ("serializer", {}),
    ),
)
def test_an_entry_with_a_wrong_field_is_refused(tmp_path, field, wrong):
    """An entry with a field that none has is refused as altered, and others are saved."""
    check_refused(tmp_path, {**ENTRY, field: wrong})


def test_an_entry_nested_too_deeply_is_refused(tmp_path):
    """An entry that is nested more deeply than Python reads JSON is refused as altered."""
    check_refused(tmp_path, "[" * 60_000)


def check_refused(folder, entry):
    catalog = Catalog("memory://", cache_dir=folder, offline="queue")
    journal = catalog._journal
    text = entry if isinstance(entry, str) else json.dumps({"format": 1, **entry})
    journal._pointers.swap("journal/000000000001", None, f"{_checksum(text)} {text}".encode())
    made = replace(Entry(**ENTRY), name="good", nonce="ba9876543210")
    journal.add(lambda ref: replace(made, digest=ref.digest, size=ref.size), "x" * 50, "json")
    result = catalog.sync()
    assert isinstance(result.errors["journal/000000000001"], IntegrityError)
    assert result.succeeded == ["good@1"]
    assert catalog.discard_refused() == 1


def test_other_pointers_in_the_folder_are_ignored(tmp_path):
    """A stray pointer among entries neither is an entry nor stops the others."""
    catalog = Catalog("memory://", cache_dir=tmp_path, offline="queue")
    for name in ("journal/abc", "journal/.DS_Store", "refused/5"):
        catalog._journal._pointers.swap(name, None, b"x")
    assert (catalog.waiting, catalog.sync().errors, catalog.discard_refused()) == (0, {}, 0)
