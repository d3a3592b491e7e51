"""Savers that are real processes: killed anywhere, and two of the same version."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from offload import Catalog, open_store
from offload.gc import sweep
from tests.catalog.mortal import Killed, Life, Mortal

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

JOIN = 60.0  # seconds
LARGE = 5 << 20  # bytes of a value of several blobs
STEPS = (1, 3, 5, 7, 8, 9, 10, 11, 12)
"""Calls to the store at which savers are killed; the later ones may be after the save."""

context = multiprocessing.get_context("fork")


class Fatal(Life):
    """Kills this process where a life ends."""

    def call(self, function, *args, **options):
        try:
            return super().call(function, *args, **options)
        except Killed:
            os.kill(os.getpid(), signal.SIGKILL)


def save(urls, value, version, dies_at, start, pipe):
    """Save, in a process of its own, which is killed at one of its calls to the store."""
    store = open_store(urls)
    if dies_at:
        store = Mortal(store, Fatal(dies_at, after=dies_at % 2 == 0))
    start.wait(JOIN)
    try:
        Catalog(store).save("model", value, version, metadata={"first": value[0]})
        pipe.send("saved")
    except Exception as exc:  # the test compares it
        pipe.send(type(exc).__name__)


def run(urls, savers):
    """Let savers of (value, version, dies_at) run at the same time; return what each said."""
    start = context.Barrier(len(savers))
    started = []
    for value, version, dies_at in savers:
        ours, theirs = context.Pipe()
        process = context.Process(
            target=save, args=(urls, value, version, dies_at, start, theirs), daemon=True
        )
        process.start()
        theirs.close()
        started.append((process, ours))
    said = []
    for process, pipe in started:
        process.join(JOIN)
        assert process.exitcode in (0, -signal.SIGKILL)
        said.append("killed" if process.exitcode else pipe.recv())
        pipe.close()
    return said


def test_killed_savers(urls):
    """A saver that is killed (SIGKILL) at some call leaves its version whole or absent, and
    neither it nor a sweep harms the other versions.
    """
    if str(urls).startswith("memory"):
        pytest.skip("no process shares it")
    values = {str(number + 1): os.urandom(LARGE) for number in range(len(STEPS))}
    said = run(urls, [(v, key, at) for (key, v), at in zip(values.items(), STEPS, strict=True)])
    assert said.count("killed") >= 5
    catalog = Catalog(urls)
    found = catalog.list_versions("model")
    done = {version for version, word in zip(values, said, strict=True) if word == "saved"}
    assert done <= set(found) <= set(values)
    for _ in range(2):
        for version in found:
            assert catalog.load("model", version, verify="full") == values[version]
            assert catalog.info("model", version).metadata == {"first": values[version][0]}
        sweep(catalog.store)
    assert catalog.save("model", b"next").version == str(int(found[-1]) + 1 if found else 1)


def test_savers_of_one_version(urls):
    """Of processes that save the same new version, one wins, and the others get VersionConflict;
    nothing of theirs is mixed into it.
    """
    if str(urls).startswith("memory"):
        pytest.skip("no process shares it")
    values = [bytes([number]) * LARGE for number in range(4)]
    said = run(urls, [(value, "1", 0) for value in values])
    assert sorted(said) == ["VersionConflict"] * 3 + ["saved"]
    winner = values[said.index("saved")]
    catalog = Catalog(urls)
    assert catalog.load("model", verify="full") == winner
    assert catalog.info("model", "1").metadata == {"first": winner[0]}
    sweep(catalog.store)
    assert Catalog(urls)["model"] == winner
