"""App of these tests, for the publisher and for workers; OFFLOAD_TEST_APP holds its settings."""

from __future__ import annotations

import json
import os

import redis
from celery import Celery, Task
from celery.exceptions import Ignore

from tests.support.apps import block_offload

CONFIG = json.loads(os.environ.get("OFFLOAD_TEST_APP", "{}"))


def make_app(broker, conf, offload=None, *, backend=None, block=False):
    """Return the app.

    *offload* are keyword arguments of Offload; None means plain Celery; *block* makes even its
    import fail, as if it weren't installed.
    """
    app = Celery("faulty", broker=broker, backend=backend or broker)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_transport_options={"visibility_timeout": 3600},
        worker_hijack_root_logger=True,
        worker_send_task_events=False,
        task_publish_retry=False,
        **conf,
    )
    if block:
        block_offload()
    app.stowaway = None
    if offload is not None:
        from offload import Offload

        app.stowaway = Offload(app, **offload)
    for options, function in TASKS:
        app.task(name=function.__name__, shared=False, **options)(function)
    app.raw = redis.Redis.from_url(broker)
    return app


TASKS = []


def task(**options):
    def keep(function):
        TASKS.append((options, function))
        return function

    return keep


def entered(self, *values):
    """Note, outside of Celery and offload, that a task's function runs with these arguments."""
    shown = [
        f"{type(v).__name__} {len(v) if hasattr(v, '__len__') else ''}".strip() for v in values
    ]
    self.app.raw.rpush(f"entered:{self.request.id}", json.dumps([*shown, self.request.retries]))


@task(bind=True)
def size(self, value, other=None):
    entered(self, value)
    return [type(value).__name__, len(value)]


@task(bind=True)
def take(self, value, config=None, **more):
    entered(self, value)
    return value


@task(bind=True)
def take_anything(self, *values, **more):
    entered(self, *values)
    return [repr(v)[:100] for v in (*values, *more.values())]


@task(bind=True)
def total(self, parts):
    entered(self, parts)
    return sum(map(len, parts))


@task(bind=True)
def produce(self, count):
    entered(self)
    return "p" * count


@task(bind=True, autoretry_for=(Exception,), max_retries=3, default_retry_delay=0)
def eager_to_retry(self, value):
    entered(self, value)
    return len(value)


@task(bind=True, max_retries=1, default_retry_delay=0)
def retry_once(self, value):
    entered(self, value)
    if self.request.retries < 1:
        raise self.retry(countdown=0)
    return [self.request.retries, len(value)]


@task()
def note_error(request, exc, traceback):
    import redis as driver

    task_id = getattr(request, "id", request)
    driver.Redis.from_url(CONFIG["broker"]).rpush(f"errback:{task_id}", repr(exc)[:2000])


@task(bind=True)
def note_error_with(self, task_id, value):
    """An old-style errback with a large argument of its own."""
    entered(self, value)
    self.app.raw.rpush(f"errback:{task_id}", type(value).__name__)


class Careful(Task):
    """A base class that reads its arguments before the task starts, like logging base classes."""

    def before_start(self, task_id, args, kwargs):
        self.app.raw.rpush(f"before:{task_id}", type(args[0]).__name__)
        args[0].upper()


@task(bind=True, base=Careful)
def carefully(self, value):
    entered(self, value)
    return len(value)


class Changing(Task):
    """A base class that continues with the result it was given."""

    def on_success(self, retval, task_id, args, kwargs):
        retval.append("added")
        self.app.raw.set(f"next:{task_id}", self.app.tasks["size"].delay(retval).id)


@task(bind=True, base=Changing)
def change_afterwards(self, count):
    return ["x" * 100] * count


@task(bind=True, acks_late=True, reject_on_worker_lost=True)
def late(self, value):
    entered(self, value)
    return len(value)


@task(bind=True, acks_late=True, reject_on_worker_lost=True)
def late_produce(self, count):
    entered(self)
    return os.urandom(count // 2).hex()


@task(bind=True)
def return_as(self, kind, wire):
    """Return user data shaped like a reference, in different types."""
    from collections import OrderedDict

    data = {"__type__": "offload", "__value__": wire}
    if kind == "ordered":
        return OrderedDict(data)
    if kind == "reducer":
        return Reducer(data)
    if kind == "state":
        self.update_state(state="SUCCESS", meta=data)
        raise Ignore
    if kind == "nested":
        return [data, {"in": data}]
    return data


class Reducer:
    """Serialized by kombu's JSON as whatever it returns."""

    def __init__(self, data):
        self.data = data

    def __json__(self):
        return self.data


if CONFIG:
    app = make_app(**CONFIG)
