"""``celery offload catalog``: what operators see of named objects, and how they change them."""

from __future__ import annotations

import io
import json
import os
import re

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from offload.catalog.names import name_pointer
from offload.catalog.records import seal
from offload.cli import offload
from tests.support.round_trips import Wire
from tests.support.wire import make_wire

pytestmark = pytest.mark.server

NAME = "churn:model"


class Command:
    """``celery offload catalog`` for an app."""

    def __init__(self, url):
        self.wire = make_wire(store=url, watch=False)
        self.catalog = self.wire.hook.catalog

    def __call__(self, *words, code=0, given=None):
        context = CLIContext(self.wire.app, True, None)
        done = CliRunner().invoke(offload, ["catalog", *map(str, words)], obj=context, input=given)
        assert done.exit_code == code, done.output
        self.bytes = done.stdout_bytes
        return done.output

    def json(self, *words, code=0, given=None):
        return json.loads(self(*words, "--json", code=code, given=given))


@pytest.fixture
def command(redis):
    command = Command(f"{redis.url}?prefix=catalog-cli-{os.getpid()}-{os.urandom(3).hex()}")
    yield command
    command.wire.hook.store.close()


def split(text):
    return [re.split(" {2,}", line) for line in text.splitlines()]


def test_objects_are_listed(command):
    """Each object has a row with its latest version, number of versions, size, age, and type."""
    assert command("list").startswith("no objects in redis://")
    assert command("list", "churn").startswith("no objects churn… in redis://")
    assert command.json("list") == []
    for version in (None, None, "2.1"):
        command.catalog.save(NAME, ["weights"] * 500, version)
    command.catalog.save("other", b"x")
    head, *rows = split(command("list"))
    assert head == ["LATEST", "VERSIONS", "SIZE", "AGE", "TYPE", "OBJECT"]
    size = command.catalog.info(NAME, 1).size
    assert [(row[0], row[1], row[2], row[4], row[5]) for row in rows] == [
        ("2.1", "3", f"{size / 1000:.1f} kB", "list", NAME),
        ("1", "1", "6 B", "bytes", "other"),
    ]
    (found,) = command.json("list", "churn")
    assert found.pop("created").startswith("20")
    assert found == {
        "bucket": "default",
        "name": NAME,
        "latest": "2.1",
        "versions": 3,
        "type": "list",
        "bytes": size,
        "bytes_of_all": 3 * size,
    }
    assert [each["name"] for each in command.json("list", "--limit", 1)] == [NAME]


def test_listing_takes_few_round_trips(command, monkeypatch):
    """Listing or searching 700 objects reads their records in two round trips."""
    names = [f"x:{number}" for number in range(700)]
    command.catalog.save(names, names, metadata={"n": 1}).raise_first()
    command("list", "none")
    wire = Wire(monkeypatch)
    assert len(command("list").splitlines()) == 701
    listed = wire.trips - b"".join(wire.sent).count(b"SCAN")
    assert listed == 2
    assert len(command("find", "--metadata", "n=1").splitlines()) == 701
    assert wire.trips - b"".join(wire.sent).count(b"SCAN") == 2 * listed


def test_a_version_is_shown(command):
    """`show` prints what is recorded of a version, tag, or the latest; nothing is loaded."""
    command.catalog.save(NAME, "first", metadata={"stage": "prod"})
    command.catalog.save(NAME, "second")
    command.catalog.tag(NAME, "production", 1)
    shown = dict(row for row in split(command("show", f"{NAME}@production")) if len(row) == 2)
    assert (shown["version"], shown["tags"], shown["type"]) == ("1", "production", "str")
    assert json.loads(shown["metadata"]) == {"stage": "prod"}
    assert command.json("show", NAME)["version"] == "2"
    assert command.wire.hook.counters.snapshot()["catalog_loads"] == 0
    assert "has no object 'other'" in command("show", "other", code=1)
    error = command.json("show", f"{NAME}@3", code=1)["error"]
    assert error["type"] == "ObjectNotFound"


def test_versions_are_listed(command):
    """`versions` has a row for each version, in order, with tags and metadata."""
    for version in ("2.10", "2.9"):
        command.catalog.save(NAME, version, version, metadata={"n": "x" * 100})
    command.catalog.tag(NAME, "live", "2.9")
    _, *rows = split(command("versions", NAME))
    assert [(row[0], row[4]) for row in rows] == [("2.9", "live"), ("2.10", "-")]
    assert rows[0][-1].endswith("…")
    assert [each["tags"] for each in command.json("versions", NAME)] == [["live"], []]
    assert "has no object" in command("versions", "other", code=1)


def test_versions_are_found(command):
    """Conditions choose versions by name, type, metadata, age, and size."""
    catalog = command.catalog
    catalog.save("a:x", [1] * 1000, metadata={"stage": "prod", "n": 5})
    catalog.save("a:y", "text", metadata={"stage": "test", "n": 5})
    catalog.save("b:x", "text", metadata={"stage": "prod"})

    def found(*words, code=0):
        found = command.json("find", *words, code=code)
        assert not any("tags" in each for each in found)  # they aren't read
        return [each["name"] for each in found]

    assert found() == ["a:x", "a:y", "b:x"]
    assert found("a:") == ["a:x", "a:y"]
    assert found("--type", "str") == ["a:y", "b:x"]
    assert found("--metadata", "stage=prod") == ["a:x", "b:x"]
    assert found("--metadata", "n=5", "--metadata", 'stage="test"') == ["a:y"]
    assert found("--larger-than", "1kB") == ["a:x"]
    assert found("--since", "1h", "--limit", 2) == ["a:x", "a:y"]
    assert found("--metadata", "n=6", code=1) == []
    assert "KEY=VALUE" in command("find", "--metadata", "n", code=2)
    assert [row[4] for row in split(command("find", "b"))[1:]] == ["b:x"]


def test_tags(command):
    """`tag` lets a tag stand for a version, or removes it."""
    for number in range(2):
        command.catalog.save(NAME, number)
    assert command("tag", f"{NAME}@1", "live") == f"{NAME}: live is 1\n"
    assert command.json("tag", NAME, "live") == {"name": NAME, "tag": "live", "version": "2"}
    assert command("tag", NAME, "live", "--remove") == f"{NAME}: removed tag live\n"
    assert command("tag", NAME, "live", "--remove", code=1) == f"{NAME}: there is no tag live\n"
    assert "not a tag" in command("tag", NAME, "a b", code=2)
    assert command.catalog.tags(NAME) == {}


@pytest.mark.parametrize(
    ("value", "content", "form"),
    (
        (b"\x00\xff", b"\x00\xff", "raw bytes"),
        ("é", "é".encode(), "UTF-8 text"),
        ({"a": [1, "é"]}, '{"a": [1, "é"]}'.encode(), "JSON"),
    ),
)
def test_objects_are_written_to_files(command, tmp_path, value, content, form):
    """`get` writes bytes and text as they are, and data as JSON, to a file or standard output."""
    command.catalog.save(NAME, value)
    path = tmp_path / "out"
    assert form in command("get", f"{NAME}@1", "-o", path)
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600
    assert "already exists" in command("get", NAME, "-o", path, code=2)
    assert command.json("get", NAME, "-o", path, "--force")["bytes"] == len(content)
    command("get", NAME, "-o", "-")
    assert command.bytes == content


def test_objects_without_a_file_format_are_refused(command, tmp_path):
    """`get` leaves no file for an object that fits no format, and never guesses one."""
    command.catalog.save(NAME, {1, 2})
    assert "can't be written as a file" in command("get", NAME, "-o", tmp_path / "out", code=1)
    assert "can't be written as a file" in command("get", NAME, "-o", "-", code=1)
    assert list(tmp_path.iterdir()) == []


def test_files_are_saved(command, tmp_path):
    """`put` saves a file or standard input as bytes, text, or JSON, as the next version."""
    path = tmp_path / "in"
    path.write_text('{"rate": 0.5}')
    assert command("put", NAME, path).startswith(f"{NAME}@1: ")
    command("put", NAME, path, "--as", "text")
    command("put", f"{NAME}@2.1", path, "--as", "json", "--metadata", '{"stage": "prod"}')
    done = command.json("put", NAME, "-", given=b"\x00\xff")
    assert (done["version"], done["type"]) == ("3", "bytes")
    catalog = command.catalog
    text = path.read_text()
    assert [catalog.load(NAME, each) for each in (1, 2, "2.1", 3)] == [
        *(text.encode(), text, {"rate": 0.5}, b"\x00\xff")
    ]
    assert catalog.info(NAME, "2.1").metadata == {"stage": "prod"}


def test_saving_never_replaces(command, tmp_path):
    """`put` of an existing version fails, or with --skip changes nothing."""
    path = tmp_path / "in"
    path.write_bytes(b"new")
    command.catalog.save(NAME, b"old", 1)
    refused = command("put", f"{NAME}@1", path, code=1)
    assert "already exists" in refused
    assert "--skip" in refused
    assert "on_conflict" not in refused
    assert command.json("put", f"{NAME}@1", path, "--skip")["version"] == "1"
    assert command.catalog[NAME] == b"old"


@pytest.mark.parametrize("more", ((), ("--skip",)))
def test_a_number_that_another_save_took_does_not_exist(command, tmp_path, more):
    """`put` of a version whose number another save has taken says that, not that it exists."""
    catalog, path = command.catalog, tmp_path / "in"
    path.write_bytes(b"new")
    catalog._pointers.change_state(NAME, lambda state: state.took(1, catalog._content().now()))
    refused = command("put", f"{NAME}@1", path, *more, code=1)
    assert "try again in an hour" in refused
    assert "already exists" not in refused


@pytest.mark.parametrize(
    ("words", "message"),
    (
        (("put", "a//b", "-"), "not a name"),
        (("put", f"{NAME}@", "-"), "no version"),
        (("put", f"{NAME}@x", "-"), "not a version"),
        (("put", NAME, "-", "--as", "json"), "isn't JSON"),
        (("put", NAME, "-", "--metadata", "{"), "isn't JSON"),
        (("list", "--bucket", "../x"), "not a bucket"),
        (("get", NAME, "-o", "-", "--json"), "can't be combined"),
        (("rm", NAME, "--json"), "add --yes"),
        (("rm", NAME, "-y"), "add --all"),
    ),
)
def test_wrong_usage(command, words, message):
    """Wrong names, versions, and files end with exit code 2, and nothing is written."""
    assert message in command(*words, code=2, given=b"{")
    assert command.catalog.list_objects() == []


def test_large_files_are_refused_before_they_are_read(command, tmp_path, monkeypatch):
    """A file over offload_max_size isn't read further than that."""
    path = tmp_path / "in"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    runtime = command.wire.app._offload
    monkeypatch.setattr(runtime, "_settings", type(runtime.settings)(max_size=1000))
    assert "over offload_max_size" in command("put", NAME, path, code=1)


def test_versions_and_objects_are_removed(command):
    """`rm` asks, removes versions, and with --all objects; exit code 1 says one was missing."""
    command.catalog.save([NAME] * 3 + ["other"], [1, 2, 3, 4])
    asked = io.BytesIO(b"n\n")
    assert f"Remove {NAME}@1 from redis://" in command("rm", f"{NAME}@1", code=1, given=asked)
    assert command("rm", f"{NAME}@1", "-y") == f"{NAME}@1: removed 1 version\n"
    done = command.json("rm", NAME, "missing", "--all", "-y", code=1)
    assert done == {"removed": {NAME: 2, "missing": 0}, "errors": {}}
    assert command.catalog.list_objects() == ["other"]
    assert "doesn't exist" in command("rm", "missing@1", "-y", code=1)


def test_what_cannot_be_removed_is_named(command):
    """An error in removing one object is shown, and the others are removed."""
    command.catalog.save(["newer", NAME], [1, 2])
    pointers = command.wire.hook.store.pointers
    state = name_pointer("default", "newer")
    before = pointers.read(state)
    newer = seal(state, {"format": 9}, command.catalog._content().signing.keys)
    pointers.swap(state, before, newer)
    done = command.json("rm", "newer", NAME, "--all", "-y", code=1)
    assert done["removed"] == {"newer": 0, NAME: 1}
    assert "newer offload" in done["errors"]["newer"]
    out = command("rm", "newer@1", "-y", code=1)
    assert "newer offload" in out


def test_buckets(command):
    """With --bucket, commands use the names of that bucket."""
    command("put", NAME, "-", "--bucket", "team-a", given=b"x")
    assert command.json("list") == []
    (found,) = command.json("list", "--bucket", "team-a")
    assert found["bucket"] == "team-a"
    assert "has no object" in command("show", NAME, code=1)
    assert command("rm", NAME, "--all", "-y", "--bucket", "team-a").endswith("removed 1 version\n")


def test_texts_from_the_store_are_escaped(command):
    """Control characters in metadata and types don't reach the terminal."""
    command.catalog.save(NAME, 1, metadata={"\x1b[31m": "\u202e"})
    for words in (("versions", NAME), ("show", NAME), ("find",)):
        assert not {"\x1b", "\u202e"} & set(command(*words))
