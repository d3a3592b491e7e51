"""Tasks for tests of offload's cost: ``-A tests.integration.features``."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

from offload import Offload, Ref


def create(config: dict[str, Any]) -> Any:
    """Return the app, the same in the test and in the worker."""
    app = Celery("features", broker=config["broker"], backend=config["backend"])
    app.set_current() if config.get("current") else None
    app.conf.update(
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        task_default_queue="features",
        worker_send_task_events=True,
        task_send_sent_event=True,
        **config.get("conf", {}),
    )
    app.offload = Offload(app, **config["offload"])

    @app.task(name="same", shared=False)
    def same(value: Any, *_more: Any) -> Any:
        return value

    @app.task(name="make", shared=False)
    def make(number: int, size: int) -> Any:
        return [number] * size

    @app.task(name="lengths", shared=False)
    def lengths(parts: Any) -> Any:
        return [len(part) for part in parts]

    @app.task(name="counted", shared=False)
    def counted(parts: list[Ref]) -> int:
        return len(parts)

    @app.task(name="read", shared=False)
    def read(value: Ref) -> Any:
        return value.get()

    @app.task(name="counters", shared=False)
    def counters() -> Any:
        return app.offload.counters.snapshot()

    @app.task(name="counted_with", shared=False)
    def counted_with(value: Any) -> Any:
        return len(value), app.offload.counters.snapshot()

    @app.task(name="spoil", shared=False)
    def spoil(value: Any, number: int) -> Any:
        found = sorted(set(value))
        for i in range(len(value)):
            value[i] = number
        return found, sorted(set(value))

    @app.task(name="wait", shared=False, bind=True)
    def wait(self: Any, value: Any, key: str) -> int:
        """Wait until the test continues."""
        self.app.backend.client.blpop(key, timeout=30)
        return len(value)

    return app


if "OFFLOAD_TEST_APP" in os.environ:
    app = create({**json.loads(os.environ["OFFLOAD_TEST_APP"]), "current": True})
