"""Coroutines in processes that fork, and that end while calls are running."""

from __future__ import annotations

import sys

import pytest

from tests.support import forkserver

pytestmark = pytest.mark.integration

APP = """
import asyncio, os, sys, threading
from celery import Celery
from offload import Offload
from offload.hooks.aio import threads

app = Celery("forks", broker="memory://", backend="cache+memory://")
offload = Offload(app, store="memory://forks")

@app.task
def size(value): ...

async def send():
    result = await offload.adelay(size, "x" * 100_000)
    app.backend.mark_as_done(result.id, 1)
    return await offload.aget(result)
"""
FORKS = """
assert asyncio.run(send()) == 1
child = os.fork()
if not child:
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("offload-async")], names
    assert asyncio.run(send()) == 1
    sys.stdout.flush()
    os._exit(7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7
assert asyncio.run(send()) == 1
print("all done")
"""
ENDS = """
threads._END = {end}
going, free = threading.Event(), threading.Event()

def block():
    going.set()
    free.wait({free})
    print("finished", flush=True)

async def leave():
    call = asyncio.ensure_future(threads.call_in_thread(block))
    while not going.is_set():
        await asyncio.sleep(0.001)
    call.cancel()

asyncio.run(leave())
print("left", flush=True)
{last}
"""


def run(script, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(APP + script)
    return forkserver.run([], module=str(path))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_serves_coroutines_by_its_own_threads(tmp_path):
    """A child of a process whose coroutines have published can do so, too, as the parent can."""
    done = run(FORKS, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "all done"), done.stderr


@pytest.mark.parametrize(
    ("end", "free", "last", "printed"),
    (
        pytest.param(150, 150, "threading.Timer(0, free.set).start()", "left finished", id="soon"),
        pytest.param(0, 150, "", "left", id="never"),
    ),
)
def test_a_process_ends_after_calls_that_have_started(end, free, last, printed, tmp_path):
    """A call whose coroutine was cancelled finishes before the process ends, unless it takes too
    long; nothing is printed about it.
    """
    done = run(ENDS.format(end=end, free=free, last=last), tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, printed.split()), done.stderr
    assert "Traceback" not in done.stderr
