"""App of these tests, for the publisher and for workers; OFFLOAD_TEST_APP holds its settings.

Each task notes in the broker, outside of Celery and offload, what its function received.
"""

from __future__ import annotations

import itertools
import json
import os

import redis
from celery import Celery, Task, signals
from celery.worker.request import create_request_cls
from kombu.utils.imports import symbol_by_name

from tests.support.apps import block_offload

CONFIG = json.loads(os.environ.get("OFFLOAD_TEST_APP", "{}"))
SERIALIZERS = ("json", "pickle", "msgpack", "yaml")


def shown(value):
    kind = type(value).__name__
    return f"{kind} {len(value)}" if hasattr(value, "__len__") else kind


class Noting(Task):
    """A task that notes what it and its failure hooks receive."""

    abstract = True

    def note(self, where, value):
        self.app.raw.rpush(where, json.dumps(value))


class LocalBatches(Noting):
    """A custom Strategy like that of celery-batches: it collects requests and calls the function
    with objects that hold their arguments, bypassing any tracer.
    """

    abstract = True
    typing = False
    flush_every = 2

    def Strategy(self, task, app, consumer):
        Req = create_request_cls(
            symbol_by_name(task.Request), task, consumer.pool, consumer.hostname, None, app=app
        )
        waiting = []

        def handle(message, body, ack, reject, callbacks, **more):
            request = Req(
                message, on_ack=ack, on_reject=reject, app=app, hostname=consumer.hostname,
                task=task, body=message.body, headers=message.headers, decoded=False,
            )  # fmt: skip
            waiting.append(request)
            if len(waiting) < self.flush_every:
                return
            items = [Item(each) for each in waiting]
            for each in waiting:
                each.acknowledge()
            waiting.clear()
            consumer.pool.apply_async(call_batch, (self.name, items), callback=ignore)

        return handle


def ignore(*_args):
    pass


def call_batch(name, items):
    try:
        return app.tasks[name](items)
    except Exception as exc:  # like celery-batches, which only logs it
        app.raw.rpush(f"error:{name}", repr(exc))


class Item:
    def __init__(self, request):
        self.id = request.id
        self.args, self.kwargs, _ = request._payload


class FromRaw(Item):
    """The arguments as they are in the message, without marks."""

    def __init__(self, request):
        self.id = request.id
        self.args, self.kwargs, _ = request.message.payload


def make_app(url, *, offload=None, block=False, backend=None, conf=None, sentry=None, **_more):
    """Return the app.

    *offload* are keyword arguments of Offload; None means plain Celery; *block* makes its import
    fail, as if it weren't installed.
    """
    app = Celery(
        "guard", broker=f"{url}/0", backend=backend or f"{url}/1", set_as_current=bool(CONFIG)
    )
    app.conf.update(
        accept_content=list(SERIALIZERS),
        result_accept_content=list(SERIALIZERS),
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=True,
        ONCE={
            "backend": "celery_once.backends.Redis",
            "settings": {"url": f"{url}/4", "default_timeout": 3600},
        },
        singleton_backend_url=f"{url}/4",
        **(conf or {}),
    )
    if block:
        block_offload()
    if sentry == "before":
        start_sentry(url)
    elif sentry == "celeryd_init":
        signals.celeryd_init.connect(lambda **_more: start_sentry(url), weak=False)
    if offload is not None:
        from offload import Offload

        app.hook = Offload(app, **offload)
    app.raw = redis.Redis.from_url(f"{url}/2")
    for options, function in TASKS:
        base = options.get("base", Noting)
        if base is not None:
            app.task(name=function.__name__, shared=False, **{**options, "base": base})(function)
    return app


def start_sentry(url):
    import sentry_sdk
    from sentry_sdk.transport import Transport

    raw = redis.Redis.from_url(f"{url}/2")

    class ToRedis(Transport):
        def capture_envelope(self, envelope):
            event = envelope.get_event()
            if event is not None:
                raw.rpush("events", json.dumps(event, default=repr))

    sentry_sdk.init("http://key@127.0.0.1:1/1", transport=ToRedis, traces_sample_rate=0.0)


TASKS = []


def task(**options):
    def keep(function):
        TASKS.append((options, function))
        return function

    return keep


try:
    from celery_batches import Batches
except ImportError:
    Batches = None
else:

    class RealBatches(Batches):
        abstract = True
        flush_every = 2
        flush_interval = 3600


@task(base=RealBatches if Batches else None)
def real_batch(requests):
    for each in requests:
        app.raw.rpush(f"entered:{each.id}", json.dumps(batch_shown(each)))


@task(base=LocalBatches)
def local_batch(requests):
    for each in requests:
        app.raw.rpush(f"entered:{each.id}", json.dumps(batch_shown(each)))


def batch_shown(each):
    return [shown(v) for v in (*each.args, *each.kwargs.values())]


@task(bind=True)
def size(self, value, other=None):
    self.note(f"entered:{self.request.id}", [shown(value)])
    return len(value)


@task(bind=True)
def anything(self, *values, **more):
    self.note(f"entered:{self.request.id}", [shown(v) for v in (*values, *more.values())])
    return len(values) + len(more)


@task(bind=True)
def fail(self, value, other=None):
    self.note(f"entered:{self.request.id}", [shown(value)])
    raise KeyError("on purpose")


class Hooked(Noting):
    """Notes what its hooks receive."""

    abstract = True

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self.note(f"on_failure:{task_id}", [args, kwargs, hash(args[0]) == hash(args[0])])

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        self.note(f"after_return:{task_id}", [args, kwargs])


@task(base=Hooked)
def hooked(value, other=None):
    raise KeyError("on purpose")


@task(base=Hooked)
def hooked_slow(value, other=None):
    import time

    time.sleep(60)


@task()
def errback(request, exc, traceback):
    app.raw.rpush(f"errback:{request.id}", json.dumps([request.args, request.kwargs]))


try:
    from celery_once import QueueOnce
    from celery_singleton import Singleton
except ImportError:
    QueueOnce = Singleton = None


@task(base=QueueOnce, once={"keys": ["key"]})
def once(key, rows):
    raise KeyError("on purpose")


@task(base=Singleton, unique_on=["key"])
def single(key, rows):
    raise KeyError("on purpose")


@task(base=Singleton)
def single_by_all(key, rows):
    raise KeyError("on purpose")


@task(bind=True)
async def coroutine(self, value):
    self.note(f"entered:{self.request.id}", [shown(value)])
    return len(value)


@task(bind=True)
def big(self, count):
    return "r" * count


@task(bind=True)
def slow(self, value, other=None):
    self.note(f"entered:{self.request.id}", [shown(value)])
    import time

    for _ in itertools.repeat(None, 600):
        time.sleep(0.1)


if CONFIG:
    app = make_app(**CONFIG)
