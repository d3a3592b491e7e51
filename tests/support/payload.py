"""A pickle that shows whether it was loaded."""

from __future__ import annotations

import os


class Payload:
    """Creates the file *path* when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.open, (self.path, os.O_CREAT, 0o600)
