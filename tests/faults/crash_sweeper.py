"""Sweep the store of the crash test until the file ``enough`` exists.

Sweep both directly, which takes no lease, and as ``celery offload gc`` does.
"""

from __future__ import annotations

import time
from pathlib import Path

from crash_app import CONFIG, offload
from crash_journal import Journal

from offload.gc import sweep

PAUSE = 0.5  # seconds


def run():
    journal = Journal(Path(CONFIG["folder"], "swept"))
    while not Path(CONFIG["folder"], "enough").exists():
        sweep(offload.store)
        for swept in offload.store.sweep():
            journal.note(swept.kind, name=swept.name)
        time.sleep(PAUSE)


if __name__ == "__main__":
    run()
