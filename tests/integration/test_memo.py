"""Memo tasks on real workers."""

from __future__ import annotations

import gc
import os
import signal
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from celery import chain, chord, group

from tests.integration.memo import create
from tests.support.apps import close, current
from tests.support.processes import wait_until, worker
from tests.support.servers import redis_client

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

APP = "tests.integration.memo"
CALLS = 50
ROWS = list(range(20_000))
TIMEOUT = 60


@contextmanager
def setup(server, folder, *, db, memo=True, serializer="json", **options):
    """Run a worker; yield its app, and a function that returns the lines that its tasks wrote."""
    url = f"redis://{server.host}:{server.port}/{db}"
    with redis_client(server, db=db) as client:
        client.flushdb()
    config = {
        "url": url,
        "folder": str(folder),
        "queue": f"memo-{folder.name}",
        "memo": memo,
        "serializer": serializer,
        "offload": True,
    }
    app = create(config)

    def runs(what):
        path = Path(folder, "runs")
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split() for line in lines if line.startswith(what)]

    with worker(folder, config, app=APP, name=folder.name, **options) as process:
        yield app, runs, process
    gc.collect()  # results unsubscribe
    with redis_client(server, db=db) as app.raw:
        close(app)


def test_equal_calls_compute_once_although_a_worker_is_killed(broker_server, tmp_path):
    """Of 50 equal calls on 4 processes, whose computing process is killed midway, exactly one
    completes, another process takes over, and all get its result. Meanwhile the others occupy no
    process: a task of another kind runs.
    """
    with setup(broker_server, tmp_path, db=7, concurrency=4) as (app, runs, _), current(app):
        results = group(app.tasks["slow"].s(ROWS, 1) for _ in range(CALLS)).apply_async()
        wait_until(lambda: runs("started"), "one has started", TIMEOUT)
        [(_, _, first)] = runs("started")
        assert app.tasks["quick"].delay().get(timeout=TIMEOUT) != int(first)
        os.kill(int(first), signal.SIGKILL)
        wait_until(lambda: len(runs("started")) == 2, "another has taken over", TIMEOUT)
        Path(tmp_path, "go").touch()
        found = results.get(timeout=TIMEOUT)
        [(_, _, second)] = runs("finished")
        assert found == [{"rows": 20_000, "number": 1, "pid": int(second)}] * CALLS
        assert second != first
        assert len(runs("started")) == 2


CANVASES = {
    "call": lambda task: task("double").s(21),
    "large": lambda task: task("double").s(ROWS),
    "chain": lambda task: chain(task("double").s(ROWS), task("double").s(), task("double").s()),
    "group": lambda task: group(task("double").s(ROWS) for _ in range(3)),
    "chord": lambda task: chord([task("double").s(ROWS) for _ in range(3)], task("total").s()),
    "small chord": lambda task: chord([task("double").s(2) for _ in range(3)], task("total").s()),
    "nested": lambda task: chain(
        task("double").s(1),
        group(task("double").s(), chain(task("double").s(), task("double").s())),
        task("total").s(),
    ),
    "callback": lambda task: task("double").s(3).set(link=task("caught").s()),
    "error callback": lambda task: task("fails").s(3).set(link_error=task("caught").s()),
}


@pytest.fixture(scope="module", params=("json", "pickle"))
def both(broker_server, tmp_path_factory, request):
    """Yield the same app with memo tasks and without."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                setup(
                    broker_server,
                    tmp_path_factory.mktemp(f"parity{db}"),
                    db=db,
                    memo=db == 9,
                    serializer=request.param,
                    pool="threads",
                    concurrency=4,
                )
            )
            for db in (8, 9)
        ]


@pytest.mark.parametrize("canvas", CANVASES)
def test_canvases_do_as_without_memo(both, canvas):
    """Every canvas of memo tasks has the result it has without memo, also from remembered results,
    and its callbacks are called each time.
    """
    seen = []
    for app, runs, _ in both:
        with current(app):
            seen.append([outcome(app, runs, canvas) for _ in range(2)])
    without, with_memo = seen
    assert with_memo == without


def outcome(app, runs, canvas):
    """Run a canvas, wait for its callbacks, and return its result, or its error as text."""
    before = len(runs("caught"))
    result = CANVASES[canvas](app.tasks.__getitem__).apply_async()
    try:
        found = result.get(timeout=TIMEOUT)
    except ValueError as exc:
        found = repr(exc)
    if "callback" in canvas:
        wait_until(lambda: len(runs("caught")) > before, "it was called back")
    return found


def test_no_call_was_computed_twice(both):
    """The canvases computed each distinct call of a memo task at most once."""
    _, (_, runs, _) = both
    assert len(runs("doubled")) <= 8
    assert len(runs("totaled")) <= 3
