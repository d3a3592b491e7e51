"""App of the crash test: its tasks check their arguments and note the result in a journal.

Publishers and workers read its settings from OFFLOAD_TEST_APP in the environment.
"""

from __future__ import annotations

import json
import os
from itertools import zip_longest
from pathlib import Path

from celery import Celery, signals
from crash_broker import VISIBLE
from crash_journal import Journal
from crash_values import is_right, make

from offload import Offload

CONFIG = json.loads(os.environ["OFFLOAD_TEST_APP"])
JOURNAL = Journal(Path(CONFIG["folder"], "tasks"))


class IntendedError(Exception):
    """The error that a failing task raises."""


app = Celery("crash_app", broker=CONFIG["broker"], backend=CONFIG["broker"])
app.conf.update(
    broker_transport_options=VISIBLE,
    result_expires=600,
    worker_prefetch_multiplier=1,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)
offload = Offload(app, threshold=1000, retention=600, **CONFIG["offload"])
if "skew" in CONFIG:
    from offload.content import holds

    holds._SKEW = CONFIG["skew"]  # one machine has one clock


def both(**options):
    """Register a task twice: acknowledged early, and late."""

    def register(function):
        name = function.__name__
        app.task(name=name, bind=True, shared=False, **options)(function)
        late = {"acks_late": True, "reject_on_worker_lost": True}
        app.task(name=f"{name}_late", bind=True, shared=False, **late, **options)(function)

    return register


def begin(task):
    JOURNAL.note("begin", id=task.request.id, pid=os.getpid(), main=os.getppid())


def end(task, *checks):
    """Note whether each value has the expected checksum."""
    right = all(is_right(value, wanted) for value, wanted in checks)
    JOURNAL.note("end", id=task.request.id, pid=os.getpid(), right=right)


@both()
def take(self, value, wanted):
    begin(self)
    end(self, (value, wanted))


@both(max_retries=5)
def again(self, value, wanted, times):
    """Run *times* times in total through retries."""
    begin(self)
    if self.request.retries + 1 < times:
        right = is_right(value, wanted)
        JOURNAL.note("again", id=self.request.id, pid=os.getpid(), right=right)
        raise self.retry(countdown=self.request.retries)
    end(self, (value, wanted))


@both()
def produce(self, seed, size, value, wanted):
    begin(self)
    end(self, (value, wanted))
    return make(seed, size)


@both()
def meet(self, made, made_wanted, value, wanted):
    """Take the result of the previous task as well."""
    begin(self)
    end(self, (made, made_wanted), (value, wanted))


@both()
def gather(self, parts, parts_wanted, value, wanted):
    begin(self)
    end(self, *zip_longest(parts, parts_wanted), (value, wanted))


@both()
def fail(self, value, wanted):
    begin(self)
    end(self, (value, wanted))
    raise IntendedError


@signals.task_received.connect
def note_received(request, **_more):
    JOURNAL.note("received", id=request.id, pid=os.getpid())


@signals.task_revoked.connect
def note_revoked(request, expired, **_more):
    JOURNAL.note("expired" if expired else "revoked", id=request.id, pid=os.getpid())


@signals.task_failure.connect
def note_failure(task_id, exception, **_more):
    JOURNAL.note("failed", id=task_id, kind=type(exception).__name__, said=str(exception)[:500])
