"""App of the tests of tasks with catalog objects, configured by the environment."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

from offload import Offload, Ref


def create(config: dict[str, Any]) -> Celery:
    app = Celery("catalog", broker=config["url"], backend=config["url"], set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        task_default_queue=config["queue"],
        accept_content=["json", "pickle"],
    )
    offload = Offload(
        app, store=config["store"], threshold=1000, stats_interval=0.1, cache=config["cache"]
    )

    @app.task(name="score", shared=False)
    def score(model: Any, number: Any = None) -> Any:
        return [model["version"], len(model["weights"]), number]

    @app.task(name="large", shared=False)
    def large(model: Any, number: int) -> int:
        return len(model["weights"])

    @app.task(name="lazy", shared=False)
    def lazy(model: Ref[Any]) -> Any:
        return model.get()["version"]

    @app.task(name="train", shared=False, offload={"save_as": "{task}:{root_id}"})
    def train(version: int) -> Any:
        return model_of(version)

    @app.task(name="release", shared=False)
    def release(model: Any, name: str) -> str:
        return str(offload.catalog.save(name, model).version)

    @app.task(name="flaky", shared=False, bind=True, max_retries=2)
    def flaky(self: Any, model: Any, name: str) -> Any:
        if self.request.retries < 2:
            offload.catalog.save(name, model_of(100 + self.request.retries))
            raise self.retry(countdown=0)
        return model["version"]

    app.finalize()
    return app


def model_of(version: int) -> dict[str, Any]:
    """Return an object that is too large for a message, and for a cache of small values."""
    return {"version": version, "weights": "w" * 300_000}


if "OFFLOAD_TEST_APP" in os.environ:
    app = create(json.loads(os.environ["OFFLOAD_TEST_APP"]))
    app.set_current()
    app.set_default()
