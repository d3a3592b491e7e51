"""Properties of memory stores."""

from __future__ import annotations

import multiprocessing
import threading

from offload.stores import open_store
from offload.stores.memory import MemoryStore
from offload.testing.store import HOUR, FakeClock, blob, blobs, contents


def test_a_name_is_one_store():
    """In one process, `memory://` URLs with the same name open the same store, and others don't."""
    digest, content = blob()
    open_store("memory://one").blobs.put({digest: [content]}, HOUR)
    again = open_store("memory://one")
    again.close()
    assert contents(again, [digest]) == [content]
    assert open_store("memory://other").blobs.hold([digest], 1) == {digest}
    assert open_store("memory://").blobs.hold([digest], 1) == {digest}
    assert open_store("memory://").url == "memory://"


def test_expired_blobs_are_dropped():
    """Expired blobs are dropped from memory when another blob is stored."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    ending, prolonged = blobs(10), blobs(10)
    store.blobs.put({**ending, **prolonged}, 10)
    store.blobs.hold(list(prolonged), 20)
    clock.advance(11)
    store.blobs.put(blobs(1), 1)
    assert set(store.state.blobs) >= set(prolonged)
    assert not set(store.state.blobs) & set(ending)
    clock.advance(11)
    store.blobs.put({}, 1)
    assert store.state.blobs == {}
    assert store.state._schedule == []


def test_a_fork_during_a_call_leaves_no_lock():
    """A child that is forked while another thread uses the store can use its copy."""
    store = MemoryStore()
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with store.state.lock:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    child = multiprocessing.get_context("fork").Process(
        target=lambda: store.blobs.put(blobs(1), HOUR)
    )
    child.start()
    child.join(20)
    leave.set()
    thread.join()
    code = child.exitcode
    child.kill()
    child.join()
    assert code == 0
