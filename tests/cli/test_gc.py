"""``celery offload gc`` against real stores."""

from __future__ import annotations

import os
import time

import pytest

from offload.gc import NAME
from offload.stores import open_store
from offload.stores.file import FileStore
from offload.testing.store import blobs

pytestmark = pytest.mark.integration


@pytest.fixture
def expired(tmp_path):
    """Return the URL of a folder with three blobs that expired an hour ago and a live one."""
    root = tmp_path / "store"
    FileStore(root).blobs.put(blobs(1), 3600)
    old = blobs(3)
    # Last: each put sweeps one folder, and none has expired by this clock.
    store = FileStore(root, clock=lambda: time.time() - 7200)
    store.blobs.put(old, 3600)
    return store.url, old


def test_expired_blobs_are_removed(project, expired):
    """The totals are printed; a second run finds nothing."""
    url, old = expired
    project.write(store=url)
    assert project.run("gc")[0].startswith(f"{url}: deleted 3 blobs (")
    assert project.run("gc")[0].startswith(f"{url}: deleted nothing")
    assert open_store(url).blobs.hold(list(old), 1) == set(old)


def test_a_dry_run_removes_nothing(project, expired):
    """A dry run lists what would be removed, with reasons on request."""
    url, old = expired
    project.write(store=url)
    for _ in range(2):
        out, err = project.run("gc", "--dry-run", "--verbose")
        *lines, total = out.splitlines()
        assert total.startswith(f"{url}: would delete 3 blobs (")
        assert {line.split("  ")[1] for line in lines} == set(old)
        assert all(line.startswith("blob  ") and "expired" in line for line in lines)
        assert err == ""  # progress is for terminals


def test_json_is_one_document(project, expired):
    """JSON has numbers and, with --verbose, every name."""
    url, old = expired
    project.write(store=url)
    dry = project.json("gc", "--dry-run", "-v")
    assert {each["name"] for each in dry["swept"]} == set(old)
    assert sum(each["bytes"] for each in dry["swept"]) == dry["bytes"]
    done = project.json("gc")
    assert (done["store"], done["dry_run"], done["busy"]) == (url, False, None)
    assert done["kinds"] == {"blob": {"count": 3, "bytes": dry["bytes"]}}
    assert "swept" not in done


def test_a_running_sweep_is_no_error(project, expired):
    """A second sweep says so, does nothing, and exits with 0, so that schedules may overlap."""
    url, _ = expired
    project.write(store=url)
    assert open_store(url).leases.acquire(f"lock/{NAME}", "someone", 600)
    assert project.run("gc")[0] == f"skipped: {url} is being swept by another process\n"
    assert project.json("gc")["busy"] == "another process"
    assert project.json("gc", "--dry-run")["count"] == 3


def test_progress_is_drawn_on_a_terminal(project, expired):
    """Progress goes to standard error, so standard output stays readable."""
    import pty
    import subprocess
    import sys

    url, _ = expired
    project.write(store=url)
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "proj", "offload", "gc"],
            cwd=project.folder,
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=120,
            check=True,
        )
        drawn = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert f"sweeping {url}: 0 found, 0 B" in drawn
    assert drawn.endswith("\r\033[K")
    assert done.stdout.decode().startswith(f"{url}: deleted 3 blobs")


@pytest.mark.server
def test_redis_has_nothing_to_remove(project, redis):
    """Redis deletes expired keys itself, so the command is harmless there."""
    project.write(store=redis.url)
    assert project.json("gc")["count"] == 0


@pytest.mark.server
def test_an_unreachable_server_exits_with_69(project):
    """The exit code is 69, as of Celery's own commands."""
    project.write(store="redis://localhost:1/0")
    _, said = project.run("gc", code=69)
    assert said.startswith("Error: redis://localhost:1/0 is unavailable")


@pytest.mark.server
def test_s3_is_swept(project, s3):
    """Blobs in a bucket that expired by the server's clock are removed; live ones stay."""
    url = s3.url("gc-command") + "&skew=1&ahead=0"
    store = open_store(url)
    ending, living = blobs(3), blobs(1)
    store.blobs.put(living, 3600)
    store.blobs.put(ending, 0.001)
    project.write(store=url)
    removed = 0
    deadline = time.monotonic() + 60
    while removed < 3:
        assert time.monotonic() < deadline
        removed += project.json("gc")["count"]
    assert removed == 3
    assert store.blobs.hold(list(living), 1) == set()
