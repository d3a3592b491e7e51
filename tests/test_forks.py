"""Forks of a process with running threads of offload."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import offload
from offload.forks import start_thread_or_call

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

IMPORTING = """
import os, sys, threading
from pathlib import Path
from offload.forks import start_thread

sys.path.insert(0, sys.argv[1])
threading.imported, threading.go_on = threading.Event(), threading.Event()
Path(sys.argv[1], "driver.py").write_text(
    "import threading; threading.imported.set(); threading.go_on.wait(0.3); there = 0"
)
start_thread(lambda: __import__("driver"), "offload-test")
threading.imported.wait()
pid = os.fork()
if not pid:
    import driver
    os._exit(driver.there)
threading.go_on.set()
print(os.waitpid(pid, 0)[1])
"""

COLLECTING = """
import gc, os, threading
from offload.forks import start_thread

go_on = threading.Event()
for number in range(200):
    start_thread(go_on.wait, f"offload-test-{number}")

class Node:
    pass

gc.collect()
for _ in range(20):
    node = Node()
    node.itself, node.local = node, threading.local()
    node.local.value = 1
del node
gc.set_threshold(gc.get_count()[0] + 60)  # reached while the threads are looked at
pid = os.fork()
if not pid:
    os._exit(0)
print(os.waitpid(pid, 0)[1])
"""


def run(script, *args):
    return subprocess.run(
        [sys.executable, "-c", script, *args],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_no_child_is_forked_while_a_driver_is_imported(tmp_path):
    """A child can import a module that a thread was importing at the fork."""
    done = run(IMPORTING, str(tmp_path))
    assert done.stdout == "0\n", done.stderr


def test_a_fork_survives_the_garbage_collector():
    """A fork doesn't hang if garbage with thread-local data is due for collection."""
    done = run(COLLECTING)
    assert done.stdout == "0\n", done.stderr


def test_all_threads_are_started_in_one_place():
    """Only `forks.start_thread` makes threads, so that no fork disturbs any of them."""
    folder = Path(offload.__file__).parent
    making = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if re.search(r"threading\.(Thread|Timer)\(", path.read_text("utf-8"))
    }
    assert making == {"forks.py"}


def test_a_call_without_threads_is_made_here(monkeypatch):
    """If no thread can start, the function is called, and its own error is raised."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    def fail():
        raise RuntimeError("of its own")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    called = []
    assert start_thread_or_call(called.append, "offload-test", 1) is None
    assert called == [1]
    with pytest.raises(RuntimeError, match="of its own"):
        start_thread_or_call(fail, "offload-test")
