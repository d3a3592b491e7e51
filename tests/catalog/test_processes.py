"""Processes that save the same things at the same time, without locks."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import pytest

from offload import Catalog, ObjectNotFound, VersionConflict

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

SAVERS = 8
JOIN = 60.0


@pytest.fixture(params=("file", "sqlite", "redis", "s3", "tiers"), name="urls")
def shared_urls(make_urls, request):
    """A store that several processes can open; what opening it imports is imported."""
    urls = make_urls(request.param)
    Catalog(urls).store.close()
    return urls


def run(function, urls, each):
    """Call *function* in forked processes that start together; return the results, in order."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(each))
    pipes, processes = [], []
    for arguments in each:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(theirs, barrier, function, urls, arguments))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    results = [pipe.recv() for pipe in pipes if pipe.poll(JOIN)]
    for process in processes:
        process.join(JOIN)
        assert process.exitcode == 0
    return results


def child(pipe, barrier, function, urls, arguments):
    catalog = Catalog(urls)
    barrier.wait(JOIN)
    pipe.send(function(catalog, *arguments))


def save_numbered(catalog, saver, turns):
    return [catalog.save("m", f"{saver}:{turn}").version for turn in range(turns)]


def test_no_number_is_lost_or_used_twice(urls):
    """Concurrent savers of one object get consecutive numbers from 1, and no value is lost."""
    turns = 1 if str(urls).startswith("s3:") else 2  # S3 takes a second for each
    numbers = run(save_numbered, urls, [(saver, turns) for saver in range(SAVERS)])
    got = {
        number: f"{saver}:{turn}"
        for saver, own in enumerate(numbers)
        for turn, number in enumerate(own)
    }
    expected = [str(number) for number in range(1, SAVERS * turns + 1)]
    catalog = Catalog(urls)
    assert sorted(got, key=int) == catalog.list_versions("m") == expected
    assert {number: catalog.load("m", number) for number in expected} == got
    assert catalog.load("m") == got[expected[-1]]


def save_same(catalog, saver):
    try:
        return catalog.save("m", f"by {saver}", "2.1").version
    except VersionConflict:
        return None


def test_one_saver_of_a_new_version_wins(urls):
    """If several processes save the same new version, all but one get VersionConflict."""
    results = run(save_same, urls, [(saver,) for saver in range(SAVERS)])
    (winner,) = [saver for saver, version in enumerate(results) if version is not None]
    assert len(results) == SAVERS
    assert Catalog(urls).load("m", "2.1") == f"by {winner}"


def compute(catalog, saver, folder):
    def slow():
        Path(folder, str(saver)).touch()
        time.sleep(0.2)  # the work that the others would repeat
        return saver

    return catalog.get_or_compute("m", "1", slow)


def test_one_process_computes(urls, tmp_path):
    """If several processes request a missing object, one computes it, and all get the result."""
    folder = tmp_path / "computed"
    folder.mkdir()
    results = run(compute, urls, [(saver, folder) for saver in range(4)])
    (computed,) = folder.iterdir()
    assert results == [int(computed.name)] * 4


def overwrite(catalog, saver):
    mutable = Catalog(catalog.store, mutable=True)
    return mutable.save("m", [saver] * 1000, "1", on_conflict="overwrite").nonce


def test_overwriting_leaves_one_whole_value(urls):
    """If several processes overwrite a version, the last one's value is stored completely."""
    run(overwrite, urls, [(saver,) for saver in range(3)])
    value = Catalog(urls).load("m", "1")
    assert value == [value[0]] * 1000


OPERATIONS = ("save", "overwrite", "skip", "remove", "remove all", "load", "tag", "copy", "mend")


def do_anything(catalog, seed, turns):
    """Call random methods on two objects; return what went wrong."""
    catalog, choice = Catalog(catalog.store, mutable=True), random.Random(seed).choice
    wrong = []
    for _ in range(turns):
        name, version = choice("ab"), choice(("1", "2", "2.1", None))
        value, asked = [choice(range(5))] * choice((1, 5000)), version or "latest"
        operation = choice(OPERATIONS)
        try:
            if operation in ("save", "overwrite", "skip"):
                how = "error" if operation == "save" else operation
                catalog.save(name, value, version, on_conflict=how)
            elif operation == "remove":
                catalog.remove(name, asked)
            elif operation == "remove all":
                catalog.remove(name)
            elif operation == "load":
                loaded = catalog.load(name, asked)
                assert loaded == loaded[:1] * len(loaded)
            elif operation == "tag":
                catalog.tag(name, "production", asked)
            elif operation == "copy":
                catalog.copy(name, choice("ab"), asked, on_conflict="overwrite")
            else:
                catalog.mend()
        except (ObjectNotFound, VersionConflict):
            pass
        except Exception as exc:
            wrong.append(f"{operation} {name}@{asked}: {exc!r}")
    return wrong


def test_nothing_is_lost_or_leaked_whatever_happens_at_once(urls):
    """After any concurrent calls, each record is listed and loads, and nothing else is held."""
    turns = 10 if str(urls).startswith("s3:") else 60
    assert run(do_anything, urls, [(seed, turns) for seed in range(4)]) == [[]] * 4
    catalog = Catalog(urls)
    records = [record for name in catalog.list_objects() for record in catalog.info(name)]
    assert len(catalog.find()) == len(records)
    for record in records:
        value = catalog.load(record.name, record.version)
        assert value == value[:1] * len(value)
    blobs = catalog.store.blobs
    if blobs.tracks_holds:
        held = {holder for info in blobs.scan() for holder in blobs.holders(info.digest)}
        assert {h for h in held if h.startswith("catalog")} == {r.holder for r in records}
