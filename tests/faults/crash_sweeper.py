"""A sweeper of the crash test, as a process. It ends when the file ``enough`` is there.

It sweeps without waiting for its turn, and now and then as ``celery offload gc`` does.
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
