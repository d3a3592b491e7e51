"""Write offload's counters when the worker's children exit.

Only the demo's worker includes this module; apps don't need it.
"""

import json
import os
from pathlib import Path

from celery.signals import worker_process_shutdown

import worker_example.app


def counters() -> dict:
    """Return this process's offload counters; empty if offload is off."""
    offload = getattr(worker_example.app, "offload", None)
    return offload.counters.snapshot() if offload else {}


@worker_process_shutdown.connect
def write_counters(**_: object) -> None:
    folder = Path(os.environ["DEMO_FOLDER"])
    (folder / f"counters-{os.getpid()}.json").write_text(json.dumps(counters()))
