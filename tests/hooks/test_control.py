"""The task ``offload.gc``."""

from __future__ import annotations

import pytest
from celery import Celery

from offload import Offload
from offload.hooks.control import Receipt, _write_receipt, read_receipt
from offload.stores.file import FileStore
from offload.stores.memory import MemoryStore
from offload.testing.store import FakeClock, blobs


def make_app(**conf):
    app = Celery("periodic", broker="memory://", set_as_current=False)
    app.conf.update(conf)
    return app


def test_every_app_with_offload_has_it():
    """The task exists whether Offload comes before or after the app is finalized, and only in apps
    with Offload.
    """
    before, after, without = make_app(), make_app(), make_app()
    Offload(before)
    after.finalize()
    Offload(after)
    for app in (before, after):
        assert app.tasks["offload.gc"].app is app
    assert "offload.gc" not in without.tasks


def test_it_has_the_apps_own_base():
    """The task uses a base class that the app sets after Offload, like other tasks."""
    app = make_app()
    Offload(app)

    class Base(app.Task):
        pass

    app.Task = Base
    assert isinstance(app.tasks["offload.gc"], Base)


@pytest.mark.filterwarnings("ignore:Task name 'offload.gc' is already registered")
def test_a_users_task_of_this_name_stays():
    """A user's task with this name is not replaced."""
    app = make_app()

    @app.task(name="offload.gc", shared=False)
    def own():
        return "own"

    Offload(app)
    assert app.tasks["offload.gc"].run() == "own"


@pytest.mark.parametrize("dry_run", (False, True))
def test_it_sweeps(tmp_path, dry_run):
    """Run by a worker, the task removes what has expired and returns totals as plain data."""
    clock = FakeClock()
    store = FileStore(tmp_path, clock=clock, skew=1)
    store.blobs.put(blobs(3), 10)
    clock.advance(60)
    app = make_app(task_always_eager=True)
    hook = Offload(app, threshold=0)
    hook._runtime._store = store
    done = app.tasks["offload.gc"].apply(kwargs={"dry_run": dry_run}).get()
    assert (done["count"], done["dry_run"]) == (3, dry_run)
    assert len(list(store.sweep(dry_run=True))) == (3 if dry_run else 0)


def test_its_message_needs_no_store():
    """Beat can send the task while the store is unavailable: its message has no reference."""
    app = make_app()
    hook = Offload(app, store="redis://localhost:1/0", threshold=0, retry={"max_retries": 0})
    app.finalize()  # like beat
    message = app.amqp.as_task_v2("id", "offload.gc", [], {"dry_run": True})
    assert message.body[1] == {"dry_run": True}
    assert hook.counters.snapshot()["values_offloaded"] == 0


@pytest.mark.parametrize("written", (b"", b"5", b"{", b'{"1": 5}', b"[" * 60_000))
def test_a_damaged_receipt_is_none(written):
    """What others wrote in place of the receipts of checks is none, and is replaced."""
    pointers = MemoryStore().pointers
    pointers.swap("offload/check", None, written)
    assert read_receipt(pointers, "1") is None
    _write_receipt(pointers, "1", Receipt("me", "1.0", "ref"))
    assert read_receipt(pointers, "1") == Receipt("me", "1.0", "ref")
