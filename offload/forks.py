"""Threads that forks don't disturb: forks are delayed while one of them imports a module."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

_OURS = "offload-"  # prefix of the names of offload's threads
_WAIT = 1.0  # longest delay of a fork in seconds
_IMPORTING = "<frozen importlib"  # file name prefix of the import system's code

_guarded = False


def _guard_forks() -> None:
    """Delay forks while a thread of offload imports a module; takes effect once per process.

    Drivers import some of their modules on first use. A child forked during such an import would
    inherit a partly initialized module that stays locked forever.
    """
    global _guarded
    if not _guarded and hasattr(os, "register_at_fork"):
        _guarded = True
        os.register_at_fork(before=_wait_for_imports)


def start_thread(target: Callable[..., None], name: str, *args: Any) -> threading.Thread:
    """Start a daemon thread; forks wait while it imports a module.

    This starts all of offload's threads. Raises RuntimeError if there are too many threads, or if
    the process is ending.

    Args:
        name: with the prefix ``offload-``.
    """
    _guard_forks()
    thread = threading.Thread(target=target, name=name, args=args, daemon=True)
    thread.start()
    return thread


def start_thread_or_call(
    target: Callable[..., None], name: str, *args: Any
) -> threading.Thread | None:
    """Start a daemon thread like `start_thread`, and return it.

    If no thread can be started, call *target* in the current one, and return None.
    """
    try:
        return start_thread(target, name, *args)
    except RuntimeError:
        pass
    target(*args)
    return None


def _wait_for_imports() -> None:
    deadline = time.monotonic() + _WAIT
    while _we_import() and time.monotonic() < deadline:
        time.sleep(0.001)


def _we_import() -> bool:
    frames = _frames()
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


def _frames() -> dict[int, FrameType]:
    """Return the current frame of each thread.

    Before Python 3.12, Python holds a lock meanwhile that thread-local data also takes as it is
    deleted. If the garbage collector ran then, the process would hang:
    https://github.com/python/cpython/issues/106883
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()  # noqa: SLF001 (documented)
    finally:
        if collects:
            gc.enable()
