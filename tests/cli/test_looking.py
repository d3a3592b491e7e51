"""``celery offload ls``, ``inspect``, ``get``, and ``rm``."""

from __future__ import annotations

import json
import os
import pickle
import re

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from offload.cli import offload
from offload.stores import open_store
from tests.support.payload import Payload
from tests.support.wire import make_wire

STORES = (
    "memory",
    "file",
    "fsspec",
    "tiers",
    pytest.param("redis", marks=pytest.mark.server),
    pytest.param("cluster", marks=pytest.mark.server),
    pytest.param("s3", marks=pytest.mark.server),
    pytest.param("redis+s3", marks=pytest.mark.server),
)
ACCOUNTED = tuple(
    store for store in STORES if getattr(store, "values", (store,))[0] not in ("file", "s3")
)
HOSTILE = '"\x1b[2J\u202e</script><img src=x>'


class Commands:
    """An app with a store, and its commands."""

    def __init__(self, store, **settings):
        self.wire = make_wire(store=store, watch=False, **settings)
        self.hook = self.wire.hook

    def run(self, *words, code=0, answer=None):
        context = CLIContext(self.wire.app, True, None)
        done = CliRunner().invoke(
            offload, list(words), obj=context, input=answer, catch_exceptions=False
        )
        assert done.exit_code == code, done.output
        return done.output

    def json(self, *words, code=0):
        context = CLIContext(self.wire.app, True, None)
        done = CliRunner().invoke(offload, [*words, "--json"], obj=context)
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    def listed(self, *words):
        return [row.split() for row in self.run("ls", *words).splitlines()[1:]]

    def task(self, name, work):
        """Return a task that runs *work*."""

        def run():
            return work()

        return self.wire.app.task(name=name, shared=False)(run)

    @property
    def digests(self):
        return {info.digest for info in self.hook.store.blobs.scan()}


@pytest.fixture
def urls(request, tmp_path):
    def find(name):
        prefix = f"looking-{os.getpid()}-{os.urandom(4).hex()}"
        if name == "memory":
            return f"memory://{prefix}"
        if name == "file":
            return f"file://{tmp_path}/store"
        if name == "fsspec":
            return [f"memory://{prefix}", f"fsspec+memory://{prefix}"]
        if name == "tiers":
            return [f"memory://{prefix}", f"file://{tmp_path}/lower"]
        if name == "s3":
            return request.getfixturevalue("s3").url(prefix)
        if name == "redis+s3":
            return [find("redis"), find("s3")]
        return f"{request.getfixturevalue(name).url}?prefix={prefix}"

    return find


@pytest.fixture
def commands(request, urls):
    return Commands(urls(request.param))


on_all = pytest.mark.parametrize("commands", STORES, indirect=True)
on_accounted = pytest.mark.parametrize("commands", ACCOUNTED, indirect=True)
in_memory = pytest.mark.parametrize("commands", ("memory",), indirect=True)
on_files = pytest.mark.parametrize("commands", ("file",), indirect=True)


def large(times=3):
    """Return compressible text of several different chunks."""
    return "".join(chr(97 + at) * (4 << 20) for at in range(times))


# -- ls


@on_all
def test_an_empty_store(commands):
    """An empty store says so, and prints an empty list as JSON."""
    assert "no matching blobs in" in commands.run("ls")
    assert commands.json("ls") == []


@on_all
def test_every_blob_is_listed(commands):
    """Every blob is listed once, with its kind, size, and remaining life."""
    text = commands.hook.put("t" * 5000)
    data = commands.hook.put({"rows": [1] * 3000})
    big = commands.hook.put(large())
    found = {each["digest"]: each for each in commands.json("ls")}
    assert found.keys() == commands.digests
    assert len(found) == 6
    assert (found[text.digest]["kind"], found[text.digest]["type"]) == ("root", "str")
    assert (found[data.digest]["type"], found[data.digest]["serializer"]) == ("dict", "json")
    assert (found[big.digest]["type"], found[big.digest]["chunks"]) == ("str", 3)
    assert found[big.digest]["value_bytes"] == big.size
    assert [each["kind"] for each in found.values()].count("chunk") == 3
    assert all(each["ttl"] > 3600 for each in found.values())
    rows = commands.listed()
    assert {row[0] for row in rows} == {digest[:15] for digest in found}


@on_all
def test_incompressible_text_is_recognized(commands):
    """A root whose first compressed block exceeds the first read is read further."""
    ref = commands.hook.put(os.urandom(60_000).hex())
    [found] = commands.json("ls")
    assert (found["digest"], found["type"]) == (ref.digest, "str")


@on_accounted
def test_holders_are_counted(commands):
    """A put counts as one holder, and each pin as another; ls sorts and filters by them."""
    once, often = commands.hook.put("a" * 5000), commands.hook.put("b" * 5000)
    for name in ("one", "two"):
        commands.hook.pin(often, name)
    found = commands.json("ls", "--sort", "holders")
    assert [(each["digest"], each["holders"]) for each in found] == [
        (often.digest, 3),
        (once.digest, 1),
    ]
    commands.hook.store.blobs.release([once.digest], "put", 3600)
    assert [each["digest"] for each in commands.json("ls", "--held")] == [often.digest]
    assert [each["digest"] for each in commands.json("ls", "--unheld")] == [once.digest]


@on_files
def test_without_hold_tracking_holders_are_unknown(commands):
    """Without hold tracking, holders are "-" and can't be filtered."""
    commands.hook.put("a" * 5000)
    [row] = commands.listed()
    assert "-" in row
    for words in (("--held",), ("--unheld",), ("--sort", "holders")):
        assert "doesn't track holds" in commands.run("ls", *words, code=1)


@in_memory
def test_blobs_are_sorted_and_filtered(commands):
    """Blobs are sorted by size or expiry, filtered by size, and limited in number; 0 chunks are
    shared.
    """
    refs = [commands.hook.put(os.urandom(n).hex(), retention=9e6 / n) for n in (900, 3000, 9000)]
    by_size = [each["digest"] for each in commands.json("ls", "--sort", "size")]
    assert by_size == [ref.digest for ref in reversed(refs)]
    by_expiry = [each["digest"] for each in commands.json("ls", "--sort", "expiry")]
    assert by_expiry == by_size
    assert [e["digest"] for e in commands.json("ls", "--sort", "size", "--limit", "1")] == by_size[
        :1
    ]
    assert len(commands.json("ls", "--larger-than", "4kB")) == 1
    assert len(commands.json("ls", "--larger-than", "0")) == 3
    assert "expected a size such as 500kB" in commands.run("ls", "--larger-than", "big", code=2)


@in_memory
def test_shared_chunks_are_counted(commands):
    """A chunk of two values is counted as shared by two."""
    commands.hook.put(large(2))
    commands.hook.put(large(3))
    shared = sorted(
        each["shared"] for each in commands.json("ls", "--shared") if each["kind"] == "chunk"
    )
    assert shared == [1, 2, 2]


@in_memory
def test_quick_omits_kinds(commands):
    """With --quick, the kind of blob is omitted."""
    commands.hook.put("a" * 5000)
    [found] = commands.json("ls", "--quick")
    assert (found["kind"], found["type"]) == (None, None)


@in_memory
def test_foreign_content_is_listed_as_unknown(commands):
    """Foreign content, or content that claims to be a root, is listed as unknown."""
    blobs = {
        "b3:" + f"{at:064x}": [content]
        for at, content in enumerate(
            (
                b"",
                b"\x07what",
                b"\x01not zstd",
                b"\x00OFFLOAD1",
                b"\x00OFFLOAD1" + b"\xff" * 30,
                b"\x00OFFLOAD1\x02\x00\x00\x00\x00\x00\x00\x00[]",
                b'\x00OFFLOAD1\x18\x00\x00\x00\x00\x00\x00\x00{"b":[1],"s":"\\u001b[2Jx"}',
            )
        )
    }
    commands.hook.store.blobs.put(blobs, 3600)
    out = commands.run("ls")
    assert "\x1b" not in out
    assert len(out.splitlines()) == len(blobs) + 1
    for digest in blobs:
        commands.run("inspect", digest, code=1)


@pytest.mark.server
def test_foreign_keys_are_ignored(redis, urls):
    """A key that looks like a blob's but has no digest is ignored."""
    import redis as driver

    url = urls("redis")
    commands = Commands(url)
    ref = commands.hook.put("a" * 5000)
    client = driver.Redis.from_url(redis.url)
    prefix = url.partition("prefix=")[2]
    client.set(f"{prefix}:blob:{{b3:zz\x1b[2J}}", "x")
    client.set(f"{prefix}:blob:{{{ref.digest[:20]}", "x")
    client.close()
    assert [each["digest"] for each in commands.json("ls")] == [ref.digest]
    assert commands.json("inspect", ref.digest[:14])["digest"] == ref.digest


# -- inspect


@on_all
def test_a_digest_or_its_prefix_is_inspected(commands):
    """A digest is accepted as a whole, as a prefix with or without b3:, or as a reference's short
    form.
    """
    ref = commands.hook.put(large())
    found = commands.json("inspect", ref.digest)
    for text in (ref.digest[3:], ref.digest[:11], ref.digest[3:11], f"{ref.digest[:11]}…"):
        again = commands.json("inspect", text)
        assert again["digest"] == ref.digest
    assert (found["what"], found["kind"], found["serializer"]) == ("blob", "root", "raw")
    assert len(found["chunks"]) == 3
    assert found["preview"]["text"] == "a" * 400
    assert found["preview"]["cut"] is True
    part = commands.json("inspect", found["chunks"][1]["digest"])
    assert (part["kind"], part["content_bytes"]) == ("chunk", 4 << 20)


@on_all
def test_an_unknown_digest(commands):
    """An unknown digest or prefix exits with 1."""
    assert "has no" in commands.run("inspect", "b3:" + "0" * 64, code=1)
    assert "starts with b3:00000000" in commands.run("inspect", "b3:00000000", code=1)


@in_memory
def test_an_ambiguous_prefix_is_refused(commands):
    """An ambiguous prefix is refused with the matching digests."""
    blobs = {f"b3:0123456789{at}{'0' * 53}": [b"x"] for at in range(2)}
    commands.hook.store.blobs.put(blobs, 3600)
    said = commands.run("inspect", "01234567", code=1)
    assert all(digest in said for digest in blobs)


@in_memory
def test_a_reference_is_inspected(commands):
    """A reference shows more than its blob: its age and kind."""
    ref = commands.hook.put({"a": 1, "text": HOSTILE, "more": [1] * 2000})
    found = commands.json("inspect", ref.wire)
    assert (found["what"], found["type"], found["digest"]) == ("reference", "dict", ref.digest)
    assert found["created"].startswith("20")
    out = commands.run("inspect", ref.wire)
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert r"\u202e" in out


@in_memory
def test_a_changed_reference_is_refused(commands):
    """The content of a changed reference isn't shown, because anybody may have written it."""
    ref = commands.hook.put("a" * 5000)
    forged = ref.wire.replace("n=5003", "n=5004")
    assert forged != ref.wire
    assert "no valid signature" in commands.run("inspect", forged, code=1)
    assert "no valid signature" in commands.run("get", forged, "-o", "never", code=1)


@in_memory
def test_a_value_within_its_reference_is_shown(commands):
    """A value contained in its reference is in no store."""
    content = commands.hook._runtime.content
    ref = content.writer.inline_ref(content.writer.serialize((1, 2), "json"))
    found = commands.json("inspect", ref.wire)
    assert (found["digest"], found["inline"]) == (None, True)
    assert found["preview"]["text"] in ("(1, 2)", "[1,2]")


@in_memory
def test_a_reference_to_a_missing_value(commands):
    """A reference to a missing value shows its own data."""
    ref = commands.hook.put("a" * 5000)
    commands.hook.store.blobs.delete([ref.digest])
    found = commands.json("inspect", ref.wire)
    assert found["type"] == "str"
    assert "has no" in found["missing"]


@in_memory
def test_arrays_and_frames_are_described_without_being_read(commands):
    """dtype and shape of arrays, and rows and columns of frames, are shown wherever they are
    nested.
    """
    np, pd, pl, pa = map(pytest.importorskip, ("numpy", "pandas", "polars", "pyarrow"))
    commands.wire.app.conf.accept_content = ["json"]

    def shown(value):
        return commands.json("inspect", commands.hook.put(value).digest)["preview"]

    array = shown(np.zeros((30, 40), "f4"))
    assert (array["type"], array["dtype"], array["shape"]) == ("ndarray", "<f4", [30, 40])
    fields = shown(np.zeros(300, [("x", "i4"), ("y", "f8")]))
    assert fields["dtype"] == "fields x, y"
    names = [f"column {at}" for at in range(60)]
    mixed = shown(pd.DataFrame({"a": range(500), "b": ["t"] * 500, "c": [None, 1] * 250}))
    assert (mixed["type"], mixed["rows"], mixed["column_count"]) == ("DataFrame", 500, 3)
    assert [name for name, _ in mixed["columns"]] == ["a", "b", "c"]
    assert mixed["columns"][0][1] == "<i8"
    wide = shown(pd.DataFrame(np.zeros((10, 60)), columns=names))
    assert [name for name, _ in wide["columns"]] == names
    for frame in (pl.DataFrame({"a": [1] * 500, "b": ["t"] * 500}), pa.table({"a": [1], "b": "t"})):
        report = shown(frame)
        assert [name for name, _ in report["columns"]] == ["a", "b"]
    inside = shown({"frame": pd.DataFrame({"a": [1]}), "pair": (1, np.zeros(3))})
    assert "<DataFrame>" in inside["text"]
    assert "<ndarray <f8 [3]>" in inside["text"]


@in_memory
def test_a_pickle_is_never_loaded(commands, tmp_path):
    """No command unpickles a value, except get --decode with its reference, which says so."""
    mark = tmp_path / "mark"
    ref = commands.hook.put({"payload": Payload(mark), "more": [object()] * 10})
    assert ref.serializer == "pickle"
    out, raw = commands.run("inspect", ref.wire), tmp_path / "raw"
    assert "is a pickle" in out
    assert "pickle" in commands.run("ls")
    commands.run("get", ref.digest, "-o", str(raw))
    refused = commands.run("get", ref.digest, "-o", str(tmp_path / "no"), "--decode", code=1)
    assert "requires a signed reference" in refused
    assert not mark.exists()
    assert not (tmp_path / "no").exists()
    assert pickle.loads(raw.read_bytes())["more"]
    mark.unlink()
    commands.run("get", ref.wire, "-o", str(tmp_path / "no"), "--decode", code=1)  # wrote no file
    assert mark.exists()


@in_memory
@pytest.mark.parametrize("value", (b"b" * 3000, "t" * 3000, [1] * 3000, ({1},) * 99), ids=type)
def test_a_digest_is_never_decoded(commands, tmp_path, value):
    """A digest doesn't say who wrote the value, so --decode needs a reference, for every
    serializer.
    """
    ref = commands.hook.put(value)
    refused = commands.run("get", ref.digest, "-o", str(tmp_path / "no"), "--decode", code=1)
    assert "requires a signed reference" in refused
    assert not list(tmp_path.iterdir())
    commands.run("get", ref.digest, "-o", str(tmp_path / "raw"))
    assert (tmp_path / "raw").stat().st_size


@in_memory
def test_a_pickle_that_the_app_does_not_accept_is_not_decoded(commands, tmp_path):
    """A pickle that the app doesn't accept isn't decoded, even by its reference."""
    mark = tmp_path / "mark"
    ref = commands.hook.put([Payload(mark)] * 10)
    commands.wire.app.conf.accept_content = ["json"]
    commands.hook._runtime._contents = None
    assert "does not accept" in commands.run(
        "get", ref.wire, "-o", str(tmp_path / "no"), "--decode", code=1
    )
    assert not mark.exists()


# -- tasks


@on_accounted
def test_a_task_is_described_without_its_result(commands):
    """A task's state and its result's reference with its holders are shown without fetching the
    value.
    """
    task = commands.task("give", lambda: large())
    result = task.delay()
    waiting = commands.json("inspect", result.id, code=1)
    assert waiting["state"] == "PENDING"
    assert "is queued or running" in waiting["not_known"]
    commands.wire.work()
    before = commands.hook.counters.snapshot()["values_fetched"]
    found = commands.json("inspect", result.id)
    assert (found["what"], found["state"]) == ("task", "SUCCESS")
    assert found["result"]["value_bytes"] == len(large()) + 3
    assert list(found["result"]["holders"]) == [f"result:{result.id}"]
    assert commands.hook.counters.snapshot()["values_fetched"] == before
    assert f"result:{result.id}  for 1.0 d" in commands.run("inspect", result.id)


@in_memory
def test_small_results_and_errors_are_shown(commands):
    """Small results and errors are in the result backend itself."""
    ok = commands.task("ok", lambda: {"x": HOSTILE})
    bad = commands.task("bad", lambda: 1 / 0)
    results = [ok.delay(), bad.delay()]
    commands.wire.work()
    assert "in the result backend: {'x': " in commands.json("inspect", results[0].id)["result"]
    assert "\x1b" not in commands.run("inspect", results[0].id)
    failed = commands.json("inspect", results[1].id)
    assert (failed["state"], failed["result"]) == (
        "FAILURE",
        "ZeroDivisionError('division by zero')",
    )


@in_memory
def test_an_id_of_hexadecimal_digits_is_found(commands):
    """An id of hexadecimal digits could be a digest; if there is none, it is taken for a task."""
    task = commands.task("ok", lambda: 1)
    task.apply_async(task_id="0123456789abcdef")
    commands.wire.work()
    assert commands.json("inspect", "0123456789abcdef")["state"] == "SUCCESS"


def test_without_a_result_backend_no_task_is_known(urls):
    """Without a result backend the command says so, and what to set."""
    commands = Commands(urls("memory"))
    commands.wire.app.conf.result_backend = "disabled"
    assert "no result backend" in commands.run("inspect", "some-task", code=1)


# -- get


@on_all
def test_content_is_written(commands, tmp_path):
    """bytes are written as such, texts as UTF-8, JSON as JSON, and a chunk's bytes as such."""
    values = {"bytes": os.urandom(5000), "text": "ü" * 5000, "large": large()}
    for name, value in values.items():
        ref, path = commands.hook.put(value), tmp_path / name
        for what in (ref.wire, ref.digest, ref.digest[:12]):
            commands.run("get", what, "--output", str(path), "--force")
            wanted = value.encode() if isinstance(value, str) else value
            assert path.read_bytes() == wanted
        assert path.stat().st_mode & 0o077 == 0
    chunk = commands.json("inspect", commands.hook.put(large()).digest)["chunks"][2]["digest"]
    report = commands.json("get", chunk, "-o", str(tmp_path / "chunk"))
    assert (report["digest"], report["form"]) == (chunk, "a chunk")
    # With the zeros that pad the last chunk.
    assert (tmp_path / "chunk").read_bytes().rstrip(b"\0") == b"c" * (4 << 20)


@in_memory
@pytest.mark.parametrize("count", (1, 2, 3))
def test_padding_is_not_written(commands, tmp_path, count):
    """Buffers are aligned in the store, within chunks and across them; files omit the padding."""
    np = pytest.importorskip("numpy")
    sizes = (5_000_003, 77, 1_200_001)[:count]
    arrays = [np.frombuffer(os.urandom(max(n, 300)), "u1") for n in sizes]
    ref = commands.hook.put(tuple(arrays))
    commands.run("get", ref.digest, "-o", str(tmp_path / "all"))
    assert (tmp_path / "all").read_bytes() == b"".join(a.tobytes() for a in arrays)


@in_memory
def test_values_are_decoded_to_files(commands, tmp_path):
    """Arrays, frames, and data are written in formats that other programs read."""
    np, pd, pa = map(pytest.importorskip, ("numpy", "pandas", "pyarrow"))
    commands.wire.app.conf.accept_content = ["json"]

    def written(value):
        path = tmp_path / os.urandom(4).hex()
        commands.run("get", commands.hook.put(value).wire, "-o", str(path), "--decode")
        return path

    array = np.arange(600.0).reshape(20, 30)
    assert np.array_equal(np.load(written(array)), array)
    frame = pd.DataFrame({"a": range(300), "b": ["t"] * 300})
    with pa.OSFile(str(written(frame))) as file:
        assert pa.ipc.open_file(file).read_all().to_pandas().equals(frame)
    assert json.loads(written({"a": [1] * 2000}).read_bytes()) == {"a": [1] * 2000}
    assert written("text" * 500).read_text() == "text" * 500


@in_memory
def test_an_existing_file_stays(commands, tmp_path):
    """An existing file stays without --force; a file that couldn't be written completely is
    removed.
    """
    ref, path = commands.hook.put(large()), tmp_path / "file"
    path.write_text("mine")
    assert "--force" in commands.run("get", ref.digest, "-o", str(path), code=2)
    last = commands.json("inspect", ref.digest)["chunks"][2]["digest"]
    commands.hook.store.state.blobs[last].content = b"\x00" + b"changed"
    for force in ((), ("--force",)):
        target = path if force else tmp_path / "other"
        said = commands.run("get", ref.digest, "-o", str(target), *force, code=1)
        assert "digest" in said
    assert path.read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file"]


@in_memory
def test_an_altered_value_is_refused(commands, tmp_path):
    """A blob whose content doesn't match its name is neither shown nor written."""
    ref = commands.hook.put("a" * 5000)
    commands.hook.store.state.blobs[ref.digest].content = b"\x00whatever"
    for words in (("inspect", ref.digest), ("get", ref.digest, "-o", str(tmp_path / "x"))):
        assert "was altered" in commands.run(*words, code=1)


# -- rm


@on_accounted
def test_an_unreferenced_blob_is_removed(commands):
    """A removed blob is missing from then on and can be stored again, also in a lower tier."""
    for value in ("a" * 5000, os.urandom(1_500_000)):
        ref = commands.hook.put(value)
        chunks = [each["digest"] for each in commands.json("inspect", ref.digest)["chunks"]]
        digests = [ref.digest, *chunks]
        commands.hook.store.blobs.release(digests, "put", 3600)
        report = commands.json("rm", *digests, "--yes")
        assert report == {"removed": digests, "held": {}, "missing": []}
        assert "has no" in commands.run("inspect", ref.digest, code=1)
        assert not commands.digests & set(digests)
        again = commands.hook.put(value)
        assert again.digest == ref.digest
        assert commands.hook.get(again) == value


@on_accounted
def test_a_held_blob_stays(commands):
    """A held blob stays, its holders are listed, and the exit code is 1; --force removes it."""
    ref = commands.hook.put("a" * 5000)
    commands.hook.pin(ref, "model")
    report = commands.json("rm", ref.digest, "--yes", code=1)
    assert report["removed"] == []
    assert {name.partition("+")[0] for name in report["held"][ref.digest]} == {"put", "pin:model"}
    said = commands.run("rm", ref.digest[:12], "--yes", code=1)
    assert "kept: held by pin:model+" in said
    assert commands.hook.get(ref) == "a" * 5000
    assert commands.json("rm", ref.digest, "--yes", "--force")["removed"] == [ref.digest]
    assert commands.digests == set()


@pytest.mark.parametrize(
    "commands",
    ("file", pytest.param("s3", marks=pytest.mark.server)),
    indirect=True,
)
def test_without_hold_tracking_rm_needs_force(commands):
    """Without hold tracking, nobody knows whether a blob is needed."""
    ref = commands.hook.put("a" * 5000)
    assert "holders unknown" in commands.run("rm", ref.digest, "-y", code=1)
    assert commands.digests == {ref.digest}
    commands.run("rm", ref.digest, "-y", "--force")
    assert commands.digests == set()


@in_memory
def test_rm_prompts(commands):
    """Without a yes, nothing is removed; with JSON there is no prompt."""
    ref = commands.hook.put("a" * 5000)
    commands.hook.store.blobs.release([ref.digest], "put", 3600)
    for answer in ("", "n\n"):
        commands.run("rm", ref.digest, code=1, answer=answer)
    assert "--yes" in commands.run("rm", ref.digest, "--json", code=2)
    assert commands.digests == {ref.digest}
    assert "deleted 1" in commands.run("rm", ref.digest, answer="y\n")
    assert commands.digests == set()


@in_memory
def test_a_missing_blob_cannot_be_removed(commands):
    """A missing blob exits with 1, and the others are removed."""
    ref = commands.hook.put("a" * 5000)
    commands.hook.store.blobs.release([ref.digest], "put", 3600)
    gone = "b3:" + "0" * 64
    report = commands.json("rm", gone, ref.digest, "--yes", code=1)
    assert report == {"removed": [ref.digest], "held": {}, "missing": [gone]}
    assert "is not a digest" in commands.run("rm", "../../etc/passwd", "--yes", code=1)


@on_accounted
def test_a_hold_that_is_taken_meanwhile_keeps_a_blob(commands, monkeypatch):
    """Checking and removing a blob is one step: a hold in between isn't broken."""
    ref = commands.hook.put("a" * 5000)
    blobs = commands.hook.store.blobs
    blobs.release([ref.digest], "put", 3600)
    drop = blobs.delete_unheld

    def late(digests):
        assert blobs.hold(digests, 3600, "task:late") == set()
        return drop(digests)

    monkeypatch.setattr(blobs, "delete_unheld", late)
    report = commands.json("rm", ref.digest, "--yes", code=1)
    assert list(report["held"][ref.digest]) == ["task:late"]
    assert commands.hook.get(ref) == "a" * 5000


# -- faults


@pytest.mark.parametrize(
    "words",
    (
        ("ls",),
        ("inspect", "b3:01234567"),
        ("inspect", "b3:" + "0" * 64),
        ("get", "01234567", "-o", "never"),
        ("rm", "01234567", "--yes"),
    ),
)
def test_an_unavailable_store_exits_with_69(words, tmp_path, monkeypatch):
    """The exit code is 69, as of other commands."""
    monkeypatch.chdir(tmp_path)
    commands = Commands("redis://localhost:1/0")
    assert "redis://localhost:1/0 is unavailable" in commands.run(*words, code=69)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
@pytest.mark.server
def test_as_operators_run_them(project, urls, tmp_path):
    """From the command line, what ls lists can be inspected, written, and removed."""
    url = urls("redis")
    project.write(store=url)
    store = open_store(url)
    Commands(url).hook.put("shown" * 2000)
    line = project.run("ls", "--sort", "size")[0].splitlines()[1]
    begin = line.split()[0]
    assert re.search(r"1 +str \(raw, 10\.0 kB\)$", line)
    assert "shownshown" in project.run("inspect", begin)[0]
    project.run("get", begin, "-o", "file")
    assert (tmp_path / "file").read_text() == "shown" * 2000
    _, said = project.run("rm", begin, code=1)
    assert "Aborted" in said
    project.run("rm", begin, "--yes", "--force")
    assert list(store.blobs.scan()) == []
