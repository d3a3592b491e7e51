"""What offload counts in the worker's children, written down when they end.

The demo's worker includes this module; an app has no need of it.
"""

import json
import os
from pathlib import Path

from celery.signals import worker_process_shutdown

import worker_example.app


def counters() -> dict:
    """Return what offload counted in this process, or nothing where it is off."""
    offload = getattr(worker_example.app, "offload", None)
    return offload.counters.snapshot() if offload else {}


@worker_process_shutdown.connect
def write_counters(**_: object) -> None:
    folder = Path(os.environ["DEMO_FOLDER"])
    (folder / f"counters-{os.getpid()}.json").write_text(json.dumps(counters()))
