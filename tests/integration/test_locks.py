"""celery-once and celery-singleton, which lock tasks by their arguments, on real workers."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from celery import chain, chord, group

from tests.integration.locks import create
from tests.support.apps import current
from tests.support.processes import wait_until, worker
from tests.support.servers import redis_client

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

ROWS = ["row"] * 30_000
TIMEOUT = 30
DB = 6


def count(app, kind):
    return app.tasks[f"{kind}_count"]


STEPS = {
    "call": lambda app, kind: count(app, kind).s(1, rows=ROWS),
    "chain": lambda app, kind: chain(
        app.tasks["echo"].s(1), count(app, kind).s(rows=ROWS), count(app, kind).si(rows=ROWS)
    ),
    "result": lambda app, kind: chain(app.tasks["echo"].s(ROWS), count(app, kind).s()),
    "link": lambda app, kind: app.tasks["echo"].s(1).set(link=count(app, kind).s(rows=ROWS)),
    "chord body": lambda app, kind: chord(
        [app.tasks["echo"].s(n) for n in range(3)], count(app, kind).s(rows=ROWS)
    ),
    "chord parts": lambda app, kind: chord(
        [app.tasks["echo"].s(ROWS) for _ in range(3)], count(app, kind).s()
    ),
    "group": lambda app, kind: chain(
        app.tasks["echo"].si(1), group([count(app, kind).si(n, rows=ROWS) for n in range(2)])
    ),
    "signature": lambda app, kind: app.tasks["calls"].s(count(app, kind).si(rows=ROWS)),
    "failure": lambda app, kind: chain(
        app.tasks["echo"].s(1), app.tasks[f"{kind}_fails"].s(rows=ROWS)
    ),
}


@pytest.fixture(scope="module")
def apps(broker_server, tmp_path_factory):
    """Return the app with and without offload, each with a worker.

    celery-once has one client per process, so they share a database.
    """
    made = {}
    url = f"redis://{broker_server.host}:{broker_server.port}/{DB}"
    with ExitStack() as stack:
        stack.enter_context(redis_client(broker_server, db=DB)).flushdb()
        for offload in (False, True):
            config = {
                "url": url,
                "offload": offload,
                "queue": f"locks-{offload}",
                "serializer": "json",
            }
            folder = tmp_path_factory.mktemp("locks")
            stack.enter_context(
                worker(
                    folder,
                    config,
                    app="tests.integration.locks",
                    name=f"locks-{offload}",
                    pool="threads",
                )
            )
            made[offload] = create(config)
        yield made


@pytest.mark.parametrize("kind", ("once", "singleton"))
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_locks_are_taken_and_released_as_in_plain_celery(apps, broker_server, kind, step):
    """In every step the lock is that of the values, and is released when the task has finished."""
    seen = {}
    for offload, app in apps.items():
        with current(app):
            try:
                seen[offload] = step(app, kind).apply_async().get(timeout=TIMEOUT)
            except Exception as exc:
                seen[offload] = repr(exc)
            wait_for_no_lock(broker_server)
    assert seen[True] == seen[False]


def wait_for_no_lock(server):
    with redis_client(server, db=DB) as client:
        wait_until(
            lambda: not client.keys("qo_*") and not client.keys("singleton_*"),
            "no lock is left",
            TIMEOUT,
        )


@pytest.mark.parametrize("kind", ("once", "singleton"))
def test_a_duplicate_is_noticed_by_its_values(apps, broker_server, kind):
    """A waiting duplicate is refused or joined by the values of its arguments."""
    seen = {}
    for offload, app in apps.items():
        task = count(app, kind)
        with current(app):
            first = task.apply_async((1,), {"rows": ROWS}, countdown=1)
            try:
                second = task.apply_async((1,), {"rows": list(ROWS)})
                seen[offload] = second.id == first.id
            except Exception as exc:
                seen[offload] = type(exc).__name__
            first.get(timeout=TIMEOUT)
            wait_for_no_lock(broker_server)
    assert seen[True] == seen[False]
    assert seen[True] == {"once": "AlreadyQueued", "singleton": True}[kind]
