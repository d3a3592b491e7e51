"""An application factory called twice in each process: ``-A tests.integration.factory:one``."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

from offload import Offload

offload = Offload(cache="off", threshold=1000)


def create_app(name: str, config: dict[str, Any]) -> Any:
    app = Celery(name, broker=config["broker"], backend=config["backend"])
    app.conf.update(
        task_default_queue=name,
        broker_connection_retry_on_startup=True,
        offload_store=config["stores"][name],
    )
    offload.init_app(app)

    @app.task(name="length", shared=False)
    def length(value: Any) -> Any:
        return len(value), offload.app.main, offload.store.url

    @app.task(name="put", shared=False)
    def put(size: int) -> Any:
        return offload.put("y" * size)

    return app


if "OFFLOAD_TEST_APP" in os.environ:
    given = json.loads(os.environ["OFFLOAD_TEST_APP"])
    one, two = (create_app(name, given) for name in ("one", "two"))
