"""App whose workers and producers may run on different versions of Python."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

from offload import Offload
from offload.classes.hashing import python_tag

CONFIG: dict[str, Any] = json.loads(os.environ["OFFLOAD_TEST_APP"])

app = Celery("pythons", broker=CONFIG["broker"], backend=CONFIG["broker"])
app.conf.update(broker_connection_retry_on_startup=True, task_default_queue=CONFIG["queue"])
offload = Offload(
    app,
    store=CONFIG["store"],
    code="signed",
    signing_key="hmac:a secret for two Pythons",
    ship_source=CONFIG["ship_source"],
)


@app.task
def run(job: Any, x: Any) -> Any:
    return [python_tag(), job.run(x)]


@app.task
def again(job: Any) -> Any:
    job.x += 1
    return job
