"""Memo tasks of the tests with real workers: ``-A tests.integration.memo``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from celery import Celery

from offload import Offload
from tests.support.processes import wait_until

LEASE = 2.0  # seconds


def note(folder: str, what: str) -> None:
    """Append a line, which other processes read while this one runs."""
    with Path(folder, "runs").open("a") as file:
        file.write(f"{what} {os.getpid()}\n")


def create(config: dict[str, Any]) -> Any:
    """Return the app, the same in the publisher and in the workers."""
    url, folder = config["url"], config["folder"]
    app = Celery("memo", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        task_default_queue=config["queue"],
        task_serializer=config["serializer"],
        result_serializer=config["serializer"],
        accept_content=[config["serializer"], "json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=4,
    )
    memo = {"memo": 3600, "memo_lease": LEASE, "version": "1"} if config["memo"] else {}
    app.offload = Offload(app, store=url, cache="off", threshold=10_000)

    @app.task(name="slow", shared=False, offload=memo)
    def slow(rows: list[int], number: int) -> Any:
        """Return a result once the file ``go`` exists."""
        note(folder, f"started {number}")
        wait_until(Path(folder, "go").exists, "the test lets the task go on", 60)
        note(folder, f"finished {number}")
        return {"rows": len(rows), "number": number, "pid": os.getpid()}

    @app.task(name="quick", shared=False)
    def quick() -> int:
        return os.getpid()

    @app.task(name="double", shared=False, offload=memo)
    def double(value: Any) -> Any:
        note(folder, "doubled")
        return value * 2

    @app.task(name="total", shared=False, offload=memo)
    def total(values: list[Any]) -> Any:
        note(folder, "totaled")
        return sum(map(len, values)) if isinstance(values[0], list) else sum(values)

    @app.task(name="fails", shared=False, offload=memo)
    def fails(*values: Any) -> Any:
        raise ValueError(len(values))

    @app.task(name="caught", shared=False)
    def caught(*_given: Any) -> None:
        note(folder, "caught")

    app.finalize()
    return app


if "OFFLOAD_TEST_APP" in os.environ:
    app = create(json.loads(os.environ["OFFLOAD_TEST_APP"]))
    app.set_current()
    app.set_default()
