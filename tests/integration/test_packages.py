"""Packages around Celery work with large arguments on real workers as in plain Celery.

celery-once, celery-singleton, and celery-batches have tests of their own:
docs/migration/integrations.md lists which test covers which package.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from celery import VERSION, group

from tests.support.apps import current
from tests.support.processes import Process, environment, wait_until, worker
from tests.support.servers import free_port, redis_client

pytest.importorskip("django_celery_results")
pytest.importorskip("django_celery_beat")
pytest.importorskip("pydantic")

from tests.integration.packages_app import create

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(180)]

ROWS = [f"row {n}" for n in range(20_000)]
TIMEOUT = 60
DB = 7
_OWN = {
    "celery.delivery_info",
    "celery.hostname",
    "celery.reply_to",
    "messaging.conversation_id",
    "messaging.destination",
    "messaging.message.id",
}
"""Attributes of a span that differ between two workers, or two messages."""
_HAS_INSTRUMENTATION = find_spec("opentelemetry") is not None and (
    find_spec("opentelemetry.instrumentation.celery") is not None
)


@pytest.fixture(scope="module")
def sides(broker_server, tmp_path_factory):
    """Return the configurations with and without offload, each with an app here and a worker."""
    folder = tmp_path_factory.mktemp("packages")
    base = {
        "url": f"redis://{broker_server.host}:{broker_server.port}/{DB}",
        "database": str(folder / "results.sqlite3"),
    }
    traced = find_spec("ddtrace") is not None
    instrumented = _HAS_INSTRUMENTATION
    found = {}
    with ExitStack() as stack:
        stack.enter_context(redis_client(broker_server, db=DB)).flushdb()
        for offload in (False, True):
            config = {**base, "offload": offload, "queue": f"packages-{offload}"}
            app = create(config)
            if not found:
                from django.core.management import call_command

                call_command("migrate", verbosity=0)
            config["spans"] = str(folder / f"spans-{offload}") if traced else None
            config["traces"] = str(folder / f"traces-{offload}") if instrumented else None
            stack.enter_context(
                worker(
                    folder,
                    config,
                    app="tests.integration.packages_app",
                    name=f"packages-{offload}",
                    pool="threads",
                    args=("-E",),
                )
            )
            found[offload] = (config, app)
        yield found


def both(sides, job):
    """Return the outcome of *job* with and without offload."""
    made = []
    for config, app in sides.values():
        with current(app):
            made.append(job(app, config))
    return made


pydantic_tasks = pytest.mark.skipif(VERSION < (5, 5), reason="Celery 5.5 added pydantic tasks")


@pydantic_tasks
def test_pydantic_tasks_get_models_and_give_their_data(sides):
    """A task with ``pydantic=True`` validates a large argument and dumps a large result."""
    order = {"customer": "Ada", "items": ROWS}
    plain, ours = both(sides, lambda app, _: app.tasks["order"].delay(order).get(timeout=TIMEOUT))
    assert ours == plain == {**order, "count": len(ROWS)}


@pydantic_tasks
def test_pydantic_tasks_refuse_wrong_data(sides):
    """A large argument that doesn't validate fails the task with pydantic's own error."""

    def job(app, _):
        with pytest.raises(Exception, match="ValidationError") as caught:
            app.tasks["order"].delay({"items": ROWS}).get(timeout=TIMEOUT)
        return type(caught.value).__name__

    plain, ours = both(sides, job)
    assert ours == plain


def test_django_celery_results_keeps_rows_that_resolve(sides):
    """Results and group results in Django's database equal those of plain Celery."""

    def job(app, _):
        result = app.tasks["progress"].delay(ROWS)
        parts = group(app.tasks["length"].s(ROWS) for _ in range(3)).delay()
        parts.save()
        values = parts.get(timeout=TIMEOUT)
        restored = app.GroupResult.restore(parts.id)
        assert result.get(timeout=TIMEOUT) == ROWS[::-1]
        again = app.AsyncResult(result.id)
        return again.state, again.result, again.name, values, restored.get(timeout=TIMEOUT)

    plain, ours = both(sides, job)
    assert ours == plain


def test_rows_of_django_celery_results_stay_small(sides):
    """`TaskResult` of a large result contains a reference instead of the value."""
    from django_celery_results.models import TaskResult

    _, app = sides[True]
    result = app.tasks["progress"].delay(ROWS)
    result.get(timeout=TIMEOUT)
    row = TaskResult.objects.get(task_id=result.id)
    assert row.status == "SUCCESS"
    assert len(row.result) < 1000
    assert "row 1" not in row.result


def test_celery_progress_reports_as_with_plain_celery(sides):
    """A progress bar reads the state and the large result of a task."""
    backend = pytest.importorskip("celery_progress.backend")

    def job(app, _):
        result = app.tasks["progress"].delay(ROWS)
        result.get(timeout=TIMEOUT)
        return backend.Progress(app.AsyncResult(result.id)).get_info()

    plain, ours = both(sides, job)
    assert ours == plain
    assert ours["success"] is True


@contextmanager
def beat(config, folder, scheduler):
    """Run a real beat process."""
    command = [sys.executable, "-m", "celery", "-A", "tests.integration.packages_app", "beat"]
    command += ["-S", scheduler, "-l", "INFO", "--pidfile", ""]
    quiet = {**config, "spans": None, "traces": None}
    process = Process(command, folder / f"beat-{config['offload']}.log", environment(quiet))
    try:
        yield process
    finally:
        process.stop()


@pytest.mark.parametrize("offload", (False, True))
def test_django_celery_beat_sends_large_arguments(sides, tmp_path, offload):
    """A periodic task in Django's database receives its large argument."""
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    config, _ = sides[offload]
    box = tmp_path / "box"
    every, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
    PeriodicTask.objects.all().delete()
    PeriodicTask.objects.create(
        interval=every,
        name="length",
        task="length",
        kwargs=json.dumps({"rows": ROWS, "box": str(box)}),
        one_off=True,
    )
    scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    with beat(config, tmp_path, scheduler) as process:
        process.wait_for(box.exists, "the periodic task ran", TIMEOUT)
    wait_until(lambda: box.read_text() == f"list of {len(ROWS)}", "the task has run")


@pytest.mark.parametrize("offload", (False, True))
def test_redbeat_sends_large_arguments(sides, tmp_path, offload):
    """A periodic task that redbeat keeps in Redis receives its large argument."""
    redbeat = pytest.importorskip("redbeat")
    from celery.schedules import schedule

    config, app = sides[offload]
    box = tmp_path / "box"
    entry = redbeat.RedBeatSchedulerEntry(
        "length", "length", schedule(1), kwargs={"rows": ROWS, "box": str(box)}, app=app
    )
    entry.save()
    try:
        with beat(config, tmp_path, "redbeat.RedBeatScheduler") as process:
            process.wait_for(box.exists, "the periodic task ran", TIMEOUT)
    finally:
        entry.delete()
    wait_until(lambda: box.read_text() == f"list of {len(ROWS)}", "the task has run")


def test_flower_shows_tasks_and_no_usable_reference(sides, tmp_path):
    """Flower lists a task with large arguments without showing usable references."""
    pytest.importorskip("flower")

    def job(app, config):
        port = free_port()
        command = [sys.executable, "-m", "celery", "-A", "tests.integration.packages_app"]
        command += ["flower", "--address=127.0.0.1", f"--port={port}"]
        env = {
            **environment({**config, "spans": None, "traces": None}),
            "FLOWER_UNAUTHENTICATED_API": "true",
        }
        log = tmp_path / f"flower-{config['offload']}.log"
        process = Process(command, log, env)
        try:

            def asked(path):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
                        return json.loads(answer.read())
                except OSError:
                    return None

            process.wait_for(lambda: asked("/api/workers"), "Flower sees the worker", TIMEOUT)
            result = app.tasks["length"].delay(ROWS)
            result.get(timeout=TIMEOUT)

            def shown():
                found = (asked("/api/tasks") or {}).get(result.id)
                return found if found and found["state"] == "SUCCESS" else None

            found = process.wait_for(shown, "Flower shows the task", TIMEOUT)
        finally:
            process.stop()
        assert "&m=" not in json.dumps(found)
        return {name: found[name] for name in ("name", "state", "result", "exception")}

    plain, ours = both(sides, job)
    assert ours == plain


@pytest.mark.skipif(find_spec("ddtrace") is None, reason="ddtrace is not installed")
def test_ddtrace_records_the_same_spans(sides):
    """ddtrace records the same spans of workers, with their resources and errors."""

    def job(app, config):
        file = Path(config["spans"])

        def spans():
            return [json.loads(line) for line in file.read_text().splitlines()]

        before = len(spans()) if file.exists() else 0
        app.tasks["length"].delay(ROWS).get(timeout=TIMEOUT)
        with pytest.raises(Exception, match="len"):
            app.tasks["length"].delay(5).get(timeout=TIMEOUT)
        wait_until(
            lambda: sum(name == "celery.run" for name, *_ in spans()[before:]) == 2,
            "the spans are written",
        )
        return sorted(spans()[before:])

    plain, ours = both(sides, job)
    assert ours == plain
    assert ["celery.run", "length", 1] in ours


@pytest.mark.skipif(not _HAS_INSTRUMENTATION, reason="the instrumentation is not installed")
def test_opentelemetry_records_the_same_spans(sides):
    """OpenTelemetry's instrumentation records the same spans of workers, with their attributes and
    errors; with offload, spans of its own are next to them.
    """

    def job(app, config):
        file = Path(config["traces"])

        def spans():
            return [json.loads(line) for line in file.read_text().splitlines()]

        before = len(spans()) if file.exists() else 0
        results = [app.tasks["length"].delay(ROWS), app.tasks["length"].delay(5)]
        assert results[0].get(timeout=TIMEOUT) == len(ROWS)
        with pytest.raises(Exception, match="len"):
            results[1].get(timeout=TIMEOUT)
        ids = {result.id for result in results}

        def ended():
            found = spans()[before:]
            named = [each["attributes"].get("messaging.message.id") for each in found]
            return found if ids <= {*named} else None

        wait_until(ended, "the spans are written")
        found = ended()
        theirs = [each for each in found if each["name"].startswith("run/")]
        return sorted(map(comparable, theirs), key=str), {each["name"] for each in found}

    (plain, _), (ours, names) = both(sides, job)
    assert ours == plain
    assert [status for _, _, status, _ in ours] == ["ERROR", "UNSET"]
    assert names >= {"run/length", "offload.fetch", "offload.decode"}


def comparable(span):
    """Return what two workers' spans of equal tasks have in common."""
    attributes = {key: value for key, value in span["attributes"].items() if key not in _OWN}
    events = [
        (event["name"], event["attributes"].get("exception.type")) for event in span["events"]
    ]
    return span["name"], attributes, span["status"]["status_code"], events
