"""App of the tests with celery-once and celery-singleton, with or without offload."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery, Task
from celery_once import QueueOnce
from celery_once.backends import redis as once
from celery_singleton import Singleton

from offload import Offload


def create(config: dict[str, Any]) -> Celery:
    url = config["url"]
    app = Celery("locks", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        task_default_queue=config["queue"],
        task_serializer=config["serializer"],
        result_serializer=config["serializer"],
        accept_content=[config["serializer"], "json"],
        singleton_backend_url=url,
        singleton_key_prefix=f"singleton_{config['queue']}_",
        ONCE={
            "backend": "celery_once.backends.Redis",
            "settings": {"url": url, "default_timeout": 3600},
        },
    )
    once.redis = None  # celery-once keeps one client per process, that of the first app
    if config["offload"]:
        Offload(app, store=url, cache="off")

    def echo(value: Any = None) -> Any:
        return value

    def count(*parts: Any, rows: Any = None) -> Any:
        return [[len(part) if isinstance(part, list) else part for part in parts], len(rows or ())]

    def fails(*parts: Any, rows: Any = None) -> Any:
        raise ValueError(len(rows))

    def calls(callback: Any) -> Any:
        app.signature(callback).apply_async()
        return len(callback["kwargs"]["rows"])

    bases: dict[str, type[Task]] = {"plain": Task, "once": QueueOnce, "singleton": Singleton}
    for kind, base in bases.items():
        for function in (count, fails):
            app.task(name=f"{kind}_{function.__name__}", base=base, shared=False)(function)
    for function in (echo, calls):
        app.task(name=function.__name__, shared=False)(function)
    app.finalize()
    return app


if "OFFLOAD_TEST_APP" in os.environ:
    app = create(json.loads(os.environ["OFFLOAD_TEST_APP"]))
    app.set_current()
    app.set_default()
