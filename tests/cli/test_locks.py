"""``celery offload locks``: what operators see of locks, and how they take one."""

from __future__ import annotations

import os

import pytest

from offload import Lock, LockLost, open_store

pytestmark = pytest.mark.integration


@pytest.fixture
def store(project, tmp_path):
    store = open_store(f"file://{tmp_path}/store")
    project.write(store=store.url)
    return store


def test_locks_are_listed(project, store):
    """The list names each lock that somebody has, its process, and its fence."""
    assert project.json("locks", "list") == []
    assert project.run("locks", "list") == ("", "")
    with Lock(store, "report:daily", ttl=600) as lock, Lock(store, "index"):
        listed = project.json("locks", "list")
        assert [each["name"] for each in listed] == ["index", "report:daily"]
        assert listed[1]["fence"] == lock.fence
        assert 500 < listed[1]["ttl"] <= 600
        out, _ = project.run("locks", "list", "report")
        assert f":{os.getpid()}  " in out
        assert "index" not in out


def test_a_lock_is_released_for_its_owner(project, store):
    """`release` frees a lock, no matter who owns it; the exit code says whether it was held."""
    lock = Lock(store, "report:daily", ttl=600)
    lock.acquire()
    out, _ = project.run("locks", "release", "report:daily", "--yes")
    assert f"released; its owner was {lock._held.owner.rpartition(':')[0]}" in out
    assert not lock.owned()
    out, _ = project.run("locks", "release", "report:daily", "--yes", code=1)
    assert out == "report:daily: not held\n"
    with pytest.raises(LockLost), Lock(store, "index"):
        done = project.json("locks", "release", "index", "other", "--yes", code=1)
        assert list(done["released"]) == ["index"]
        assert done["missing"] == ["other"]
    with lock:
        _, err = project.run("locks", "release", "report:daily", "a b", "--yes", code=2)
        assert "not a name: 'a b'" in err
        assert "Traceback" not in err
        assert lock.owned()
    lock.acquire()
    project.run("locks", "release", "report:daily", "--yes")
    with pytest.raises(LockLost):
        lock.release()
