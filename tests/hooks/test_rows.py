"""Results in databases: their values live as long as their rows."""

from __future__ import annotations

import os
from datetime import datetime, timedelta

import pytest
from celery import states
from celery.exceptions import Ignore
from sqlalchemy import create_engine, text

from offload import BlobMissing
from offload.hooks import release
from offload.hooks.stored_states import stored_ref
from offload.stores.file import FileStore
from offload.stores.memory import MemoryStore
from offload.testing.store import FakeClock
from tests.support.content import set_clock
from tests.support.django_database import use_database
from tests.support.sql_results import new_database
from tests.support.wire import make_wire

DAY = 86400.0
BIG = list(range(2000))
BACKENDS = ("sqlalchemy", "django", "files")


@pytest.fixture(params=BACKENDS)
def wire(request, tmp_path):
    """Return a wire whose result backend keeps rows; ``age(seconds)`` makes them older."""
    backend, age = globals()[f"_{request.param}"](tmp_path)
    conf = {"result_backend": backend, "result_expires": DAY}
    wire = make_wire(watch=False, grace=60, conf=conf)
    wire.clock = FakeClock()
    wire.hook._runtime._store = MemoryStore(clock=wire.clock)
    set_clock(wire.hook._runtime.content, lambda: 1e9 + wire.clock())

    def advance(seconds):
        wire.clock.advance(seconds)
        age(seconds)

    wire.advance = advance

    @wire.app.task(name="echo", shared=False)
    def echo(value):
        return value

    @wire.app.task(name="fail", shared=False)
    def fail(message):
        raise ValueError(message)

    @wire.app.task(name="going", bind=True, shared=False)
    def going(self, value):
        self.update_state(state="PROGRESS", meta=value)
        raise Ignore

    wire.echo, wire.fail, wire.going = echo, fail, going
    return wire


def _sqlalchemy(folder):
    engine = create_engine(f"sqlite:///{folder}/results.db")

    def age(seconds):
        with engine.begin() as connection:
            for number, done in list(
                connection.execute(
                    text("select id, date_done from celery_taskmeta where date_done is not null")
                )
            ):
                older = datetime.fromisoformat(done) - timedelta(seconds=seconds)
                connection.execute(
                    text("update celery_taskmeta set date_done = :done where id = :id"),
                    {"done": older.strftime("%Y-%m-%d %H:%M:%S.%f"), "id": number},
                )

    return new_database(folder / "results.db"), age


def _django(folder):
    pytest.importorskip("django_celery_results")
    use_database(folder / "results.sqlite3")
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    from django.db.models import F
    from django_celery_results.models import TaskResult

    TaskResult.objects.all().delete()

    def age(seconds):
        TaskResult.objects.update(date_done=F("date_done") - timedelta(seconds=seconds))

    return "django-db", age


def _files(folder):
    results = folder / "results"
    results.mkdir()

    def age(seconds):
        for path in results.iterdir():
            modified = path.stat().st_mtime - seconds
            os.utime(path, (modified, modified))

    return f"file://{results}", age


def holders(wire):
    blobs = wire.hook.store.blobs
    return {name for info in blobs.scan() for name in blobs.holders(info.digest)}


def test_a_row_keeps_its_value(wire):
    """A row stays readable until it is cleaned up, even after result_expires, as in Celery."""
    result = wire.echo.delay(BIG)
    wire.work()
    wire.advance(100 * DAY)
    assert wire.app.AsyncResult(result.id).get(timeout=10) == BIG
    assert holders(wire) == {f"result:{result.id}"}


def test_the_cleanup_releases_what_it_deletes(wire):
    """After celery.backend_cleanup, only the remaining rows keep their values."""
    old = [wire.echo.delay([*BIG, n]) for n in range(3)]
    wire.work()
    wire.advance(2 * DAY)
    new = wire.echo.delay(BIG)
    small = wire.echo.delay(1)
    wire.work()
    wire.app.tasks["celery.backend_cleanup"]()
    assert holders(wire) == {f"result:{new.id}"}
    assert [wire.app.AsyncResult(each.id).state for each in (*old, small)] == [
        *["PENDING"] * 3,
        "SUCCESS",
    ]
    assert wire.app.AsyncResult(new.id).get(timeout=10) == BIG
    wire.clock.advance(120)
    assert len(list(wire.hook.store.blobs.scan())) == 1


def test_rows_of_failures_and_progress_keep_their_values(wire):
    """A failure's row stays readable until it is cleaned up. Progress expires by itself, as not
    every cleanup deletes the row of a task that was killed.
    """
    text = "no " * 5000
    failed, going = wire.fail.delay(text), wire.going.delay(BIG)
    wire.work()
    assert wire.app.AsyncResult(going.id).info == BIG
    progress = f"progress:{going.id}"
    assert {name.partition("+")[0] for name in holders(wire)} == {f"result:{failed.id}", progress}
    wire.advance(100 * DAY)
    with pytest.raises(ValueError, match="no no") as caught:
        wire.app.AsyncResult(failed.id).get(timeout=10)
    assert caught.value.args == (text,)
    assert holders(wire) == {f"result:{failed.id}"}
    wire.app.tasks["celery.backend_cleanup"]()
    assert holders(wire) == set()


def test_progress_after_a_success_is_held_where_it_is_stored(wire):
    """Progress that a second run of a finished task stores is held where it replaces the result,
    and dropped where Celery keeps the result.
    """
    wire.app.backend.store_result("finished-id", 1, states.SUCCESS)
    wire.going.update_state("finished-id", "PROGRESS", BIG)
    result = wire.app.AsyncResult("finished-id")
    is_kept = result.state == states.SUCCESS
    assert len(holders(wire)) == (0 if is_kept else 1)
    assert result.info == (1 if is_kept else BIG)


def test_a_row_that_expires_during_the_cleanup_is_released(wire):
    """A row that expires between the query and the deletion releases its value, too."""
    wire.echo.delay(BIG)
    wire.work()
    wire.advance(DAY - 5)
    backend = wire.app.backend

    def cleanup():
        wire.advance(10)
        type(backend).cleanup(backend)

    backend.cleanup = cleanup
    find = lambda task_id: stored_ref(wire.hook._runtime, backend, task_id)
    release.cleanup_releasing(wire.hook._runtime, backend, find)()
    assert holders(wire) == set()


def test_with_expiry_only_a_value_lasts_until_the_next_cleanup(wire, tmp_path):
    """On a store with expiry only, a value outlives result_expires by a day."""
    clock = FakeClock()
    wire.hook._runtime._store = FileStore(tmp_path / "store", clock=clock, skew=1)
    wire.hook._runtime._contents = None
    wire.echo.apply_async((BIG,), offload={"retention": 60})
    wire.work()
    (left,) = {round(info.ttl / DAY, 1) for info in wire.hook.store.blobs.scan()}
    assert 2 <= left <= 2.6


def test_a_lost_result_names_the_setting(wire):
    """The error about a result whose value is missing names the setting that keeps it."""
    result = wire.echo.delay(BIG)
    wire.work()
    wire.hook.store.blobs.delete([info.digest for info in wire.hook.store.blobs.scan()])
    with pytest.raises(BlobMissing, match="result_expires") as caught:
        result.get(timeout=10)
    assert caught.value.argument == "result"
    assert caught.value.digest


@pytest.mark.parametrize("wire", ("sqlalchemy",), indirect=True)
def test_other_backends_are_left_alone(wire):
    """Backends that expire results themselves have no cleanup to follow."""
    assert release.keeps_rows(wire.app.backend)
    assert not release.keeps_rows(make_wire().app.backend)
