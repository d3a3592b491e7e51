"""What threads of a worker's main process owe the children that it forks."""

from __future__ import annotations

import os
import sys
import threading
import time

__all__ = ("guard_forks",)

_OURS = "offload-"  # what the names of this library's threads begin with
_WAIT = 1.0  # seconds that a fork is held up at most
_IMPORTING = "<frozen importlib"  # begins the file names of the import system's own code

_guarded = False


def guard_forks() -> None:
    """Have forks wait while a thread of ours imports something; once per process.

    Drivers import parts of themselves when they are first used. A child that is forked
    meanwhile would find such a module half made, and locked for ever.
    """
    global _guarded
    if not _guarded and hasattr(os, "register_at_fork"):
        _guarded = True
        os.register_at_fork(before=_wait_for_imports)


def _wait_for_imports() -> None:
    deadline = time.monotonic() + _WAIT
    while _we_import() and time.monotonic() < deadline:
        time.sleep(0.001)


def _we_import() -> bool:
    frames = sys._current_frames()  # noqa: SLF001 (documented)
    me = threading.get_ident()
    for thread in threading.enumerate():
        if thread.ident == me or not thread.name.startswith(_OURS):
            continue
        frame = frames.get(thread.ident or 0)
        while frame is not None:
            if frame.f_code.co_filename.startswith(_IMPORTING):
                return True
            frame = frame.f_back
    return False
