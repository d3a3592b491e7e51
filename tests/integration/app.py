"""App of the integration tests, configured by the environment and the same in all processes.

With ``offload`` false it is plain Celery, so that the same scenarios run on both.
"""

from __future__ import annotations

import json
import os
import pickle
from typing import Any

import redis
from celery import Celery, Task, chain, group, shared_task, signals, signature
from kombu import Producer

from offload import Offload
from tests.integration.values import CANARY, typed

CONFIG: dict[str, Any] = json.loads(os.environ["OFFLOAD_TEST_APP"])

app = Celery("parity", broker=CONFIG["broker"], backend=CONFIG["backend"])
app.conf.update(
    task_serializer=CONFIG["serializer"],
    result_serializer=CONFIG["serializer"],
    accept_content=[CONFIG["serializer"], "json"],
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=4,
    task_default_queue="parity",
    result_persistent=False,
    broker_transport_options={"visibility_timeout": 3600},
    **CONFIG.get("conf", {}),
)
notes = redis.Redis.from_url(CONFIG["notes"])


def record(key: str, *values: Any) -> None:
    """Record an observation for the scenario that waits for *key*."""
    notes.rpush(f"seen:{key}", pickle.dumps([typed(value) for value in values]))


# Connected before Offload(app), as receivers in users' modules may be.

WATCHED = ("watched", "watched_failure")


@signals.task_prerun.connect(weak=False)
def on_prerun(sender: Any = None, args: Any = None, kwargs: Any = None, **_: Any) -> None:
    if sender.name in WATCHED:
        record(kwargs["key"], "prerun", args, kwargs)


@signals.task_postrun.connect(weak=False)
def on_postrun(
    sender: Any = None,
    args: Any = None,
    kwargs: Any = None,
    retval: Any = None,
    state: Any = None,
    **_: Any,
) -> None:
    if sender.name in WATCHED:
        record(kwargs["key"], "postrun", args, kwargs, retval, state)


@signals.task_success.connect(weak=False)
def on_success(sender: Any = None, result: Any = None, **_: Any) -> None:
    if sender.name in WATCHED:
        record(sender.request.kwargs["key"], "success", result)


@signals.task_failure.connect(weak=False)
def on_failure(
    sender: Any = None, args: Any = None, kwargs: Any = None, exception: Any = None, **_: Any
) -> None:
    if sender.name in WATCHED:
        record(kwargs["key"], "failure", args, kwargs, exception)


publish = Producer.publish


def watched_publish(self: Any, body: Any, *args: Any, **options: Any) -> Any:
    """Record every message with a large value when it is sent."""
    headers = options.get("headers") or {}
    if "task" in headers:  # no event
        if CANARY.encode() in pickle.dumps(body) or CANARY in repr(headers):
            notes.sadd("in_full", headers["task"])
        notes.incr("published")
    return publish(self, body, *args, **options)


Producer.publish = watched_publish


offload = Offload(app, **CONFIG["offload"]) if CONFIG["offload"] else None


# -- tasks


@app.task
def echo(value: Any = None, *_more: Any, **_named: Any) -> Any:
    return value


@app.task
def pair(first: Any, second: Any = None) -> Any:
    return [first, second]


@app.task
def everything(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


@app.task
def change(value: Any) -> Any:
    """Change an argument in place and return it."""
    value["changed"] = value.get("changed", 0) + 1
    return value


@app.task
def fail(value: Any) -> Any:
    raise ValueError("on purpose", value["rows"][:2])


class Refused(ValueError):
    """An error with data, which can't be constructed from its arguments alone."""

    def __init__(self, text: str, rows: Any, *, code: int) -> None:
        super().__init__(text, rows, code)


LONG = "no row fits " * 20_000


@app.task(bind=True)
def fail_largely(self: Any, kind: str, *_given: Any) -> Any:
    if kind == "retry" and not self.request.retries:
        raise self.retry(exc=KeyError(LONG), countdown=0.5)
    try:
        raise LookupError(LONG)
    except LookupError as exc:
        if kind == "cause":
            raise ValueError("small", 1) from exc
        if kind == "refused":
            raise Refused(LONG, [[n, n / 4, "é"] for n in range(200)], code=4) from None
        if kind == "unknown":
            raise type("Unknown", (RuntimeError,), {"__module__": "nowhere"})(LONG) from None
        raise


@app.task(bind=True)
def progress_largely(self: Any, key: str) -> Any:
    for rows in ([LONG] * 2, {"small": 1}, {"rows": [LONG, 1]}):
        self.update_state(state="PROGRESS", meta=rows)
        record(key, app.AsyncResult(self.request.id).info)
    return rows


@app.task
def remember(value: Any, key: str = "") -> Any:
    record(key, value)
    return value


@app.task(bind=True)
def request_seen(self: Any, *args: Any, **kwargs: Any) -> Any:
    request = self.request
    return [request.args, request.kwargs, type(request.args).__name__, request.retries]


@app.task(bind=True)
def flaky(self: Any, value: Any, times: int) -> Any:
    if self.request.retries < times:
        raise self.retry(countdown=0.05, max_retries=5)
    return [value, self.request.retries]


@app.task(bind=True)
def flaky_changed(self: Any, value: Any, times: int = 0, **kwargs: Any) -> Any:
    if times:
        value["changed"] = times
        raise self.retry(args=[value], kwargs={"times": times - 1, "more": [value]}, countdown=0.05)
    return [value, kwargs, self.request.retries]


PAUSE = 0.3
"""Seconds before a retry that may fail for good: Celery stores the state of an attempt after it has
sent the next one, and on a busy machine would put RETRY in the place of that one's FAILURE."""


@app.task(bind=True)
def never(self: Any, value: Any) -> Any:
    raise self.retry(exc=KeyError("never", value["rows"][0]), countdown=PAUSE, max_retries=2)


@app.task(bind=True, max_retries=1)
def never_by_itself(self: Any, value: Any) -> Any:
    raise self.retry(countdown=PAUSE)


@app.task(
    bind=True,
    autoretry_for=(LookupError,),
    retry_kwargs={"max_retries": 3, "countdown": PAUSE},
)
def autoretried(self: Any, value: Any, times: int) -> Any:
    if self.request.retries < times:
        raise LookupError("again")
    return [value, self.request.retries]


@app.task(bind=True)
def replaced(self: Any, value: Any, how: str) -> Any:
    by = {
        "task": pair.s(value, "replaced"),
        "chain": chain(pair.s(value, "one"), pair.s("two")),
        "group": group(pair.s(value, i) for i in range(3)),
        "chord": group(pair.s(value, i) for i in range(3)) | pair.s("body"),
    }
    raise self.replace(by[how])


@app.task(bind=True)
def adds_to_chord(self: Any, value: Any) -> Any:
    self.add_to_chord(echo.si(value))
    return "added"


@app.task
def launch(several: Any, one: Any, times: int) -> Any:
    for call in (*several, one):
        signature(call, app=app).delay()
    if times > 1:
        launch.delay([one], one, times=0)
    return "launched"


@app.task
def spawn(value: Any, key: str) -> Any:
    remember.delay(value, key=key)
    (pair.s(value) | remember.s(key=key)).delay("chained")
    return "spawned"


@app.task(bind=True)
def progress(self: Any, value: Any, key: str) -> Any:
    self.update_state(state="PROGRESS", meta={"so far": value})
    record(key, app.backend.get_task_meta(self.request.id)["status"])
    record(key, app.AsyncResult(self.request.id).info)
    return value


@shared_task(name="shared")
def shared(value: Any) -> Any:
    return [value, "shared"]


@app.task(ignore_result=True)
def ignored(value: Any, key: str) -> Any:
    record(key, value)
    return value


@app.task(track_started=True)
def started(value: Any) -> Any:
    return value


@app.task(acks_late=True)
def late(value: Any) -> Any:
    return value


@app.task(name="by.name.only")
def by_name_only(value: Any, n: int = 0) -> Any:
    return [value, n]


@app.task(serializer="pickle" if CONFIG["serializer"] == "pickle" else "json")
def own_serializer(value: Any) -> Any:
    return [value]


@app.task(typing=False)
def untyped(value: Any) -> Any:
    return value


@app.task
def old_errback(task_id: str, *, extra: Any = None, key: str = "") -> None:
    record(key, "old", isinstance(task_id, str), extra)


@app.task
def old_errback_positional(task_id: str, extra: Any = None, key: str = "") -> None:
    record(key, "old", isinstance(task_id, str), extra)


@app.task
def new_errback(request: Any, exc: Any, traceback: Any, extra: Any = None, key: str = "") -> None:
    record(key, "new", list(request.args), request.kwargs, exc, extra)


@app.task(time_limit=1)
def endless(value: Any) -> None:
    while True:
        pass


class ClassBased(Task):
    name = "class_based"

    def run(self, value: Any, n: int = 1) -> Any:
        return self.helper(value) * n

    def helper(self, value: Any) -> Any:
        return [value]


app.register_task(ClassBased())


class Watching(Task):
    """A custom base class that records all it sees."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        record(kwargs["key"], "call", list(args), kwargs)
        return [super().__call__(*args, **kwargs), "through call"]

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        record(kwargs["key"], "before_start", list(args), kwargs)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        record(kwargs["key"], "on_success", retval, list(args), kwargs)

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        record(kwargs["key"], "on_failure", exc, list(args), kwargs)

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        record(kwargs["key"], "on_retry", list(args), kwargs)

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        record(kwargs["key"], "after_return", status, retval, list(args), kwargs)


@app.task(base=Watching, name="watched", bind=True)
def watched(self: Any, value: Any, key: str, retries: int = 0) -> Any:
    if self.request.retries < retries:
        raise self.retry(countdown=0.05)
    return value


@app.task(base=Watching, name="watched_failure")
def watched_failure(value: Any, key: str) -> Any:
    raise RuntimeError("watched", value["rows"][0])


app.conf.beat_schedule = {
    "with a big kwarg": {
        "task": remember.name,
        "schedule": 0.5,
        "args": (),
        "kwargs": {"value": {"canary": CANARY, "numbers": list(range(500))}, "key": "beat"},
    },
    "from afar": {"task": "by.name.only", "schedule": 3600.0, "args": [CANARY]},
}
if not CONFIG.get("beat"):
    app.conf.beat_schedule = {}
