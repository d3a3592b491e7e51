"""A journal for processes that may be killed at any moment: one line per write, appended."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


class Journal:
    """A file that many processes append to, and that survives whichever is killed."""

    def __init__(self, path):
        self._path = path
        self._opened = None

    def note(self, what, **known):
        if self._opened is None or self._opened[0] != os.getpid():
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            self._opened = os.getpid(), fd
        os.write(
            self._opened[1],
            (json.dumps({"at": time.time(), "what": what, **known}) + "\n").encode(),
        )


def lines(path):
    """Yield the entries in order."""
    path = Path(path)
    for line in path.read_bytes().splitlines() if path.exists() else ():
        yield json.loads(line)
