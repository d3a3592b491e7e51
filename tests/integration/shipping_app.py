"""Tasks that know none of their arguments' classes: ``-A tests.integration.shipping_app``."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

from offload import Offload


class Own:
    """A class that producers and workers import."""

    def __init__(self, value: Any) -> None:
        self.value = value


def create(config: dict[str, Any]) -> Any:
    """Return the app, the same in the producer and in the worker."""
    app = Celery("shipping", broker=config["broker"], backend=config["backend"])
    app.set_current()
    app.conf.update(
        task_default_queue="shipping",
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        **config.get("conf", {}),
    )
    if config["serializer"] == "pickle":
        app.conf.update(
            task_serializer="pickle", result_serializer="pickle", accept_content=["pickle", "json"]
        )
    app.offload = Offload(app, **config["offload"])
    seen: dict[str, Any] = {}

    @app.task(name="echo", shared=False)
    def echo(value: Any) -> Any:
        return value

    @app.task(name="run", shared=False)
    def run(value: Any) -> str:
        return repr(value.run())

    @app.task(name="call", shared=False)
    def call(function: Any, *args: Any) -> str:
        return repr(function(*args))

    @app.task(name="gather", shared=False)
    def gather(parts: list[Any]) -> Any:
        return [parts, len({type(part) for part in parts})]

    @app.task(name="retried", shared=False, bind=True)
    def retried(self: Any, value: Any) -> Any:
        if not self.request.retries:
            raise self.retry(args=([value],), countdown=0)
        return value

    @app.task(name="seen_before", shared=False)
    def seen_before(value: Any) -> Any:
        """Return whether it has the same class as the previous one in this process."""
        before = seen.setdefault(type(value).__qualname__, type(value))
        counters = app.offload.counters.snapshot()
        return [os.getpid(), isinstance(value, before), counters["classes_loaded"]]

    @app.task(name="wait", shared=False)
    def wait(key: str, value: Any) -> str:
        """Wait until the test continues."""
        app.backend.client.blpop(key, timeout=30)
        return repr(value.run())

    @app.task(name="note_error", shared=False)
    def note_error(request: Any, exc: Any, _traceback: Any) -> None:
        app.backend.client.rpush("errors", f"{request.id} {type(exc).__name__} {exc}")

    @app.task(name="counters", shared=False)
    def counters() -> Any:
        return app.offload.counters.snapshot()

    return app


if "OFFLOAD_TEST_APP" in os.environ:
    app = create(json.loads(os.environ["OFFLOAD_TEST_APP"]))
