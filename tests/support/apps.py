"""Make an app the current one, close it, or hide offload from it."""

from __future__ import annotations

import sys
from contextlib import contextmanager

from celery import _state


@contextmanager
def current(app):
    """Make *app* the current app in this block, as in its worker."""
    before = _state._tls.current_app
    app.set_current()
    try:
        yield
    finally:
        _state._tls.current_app = before


def close(app):
    """Close *app*, its client ``app.raw``, and the result backend's clients."""
    app.raw.close()
    app.backend.result_consumer.stop()
    app.backend.result_consumer._pubsub = None  # for results that are collected later
    app.backend.client.close()
    app.close()


class _Finder:
    def find_spec(self, name, *_args):
        if name.partition(".")[0] == "offload":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def block_offload():
    """Make imports of offload fail in this process, as if it weren't installed."""
    sys.meta_path.insert(0, _Finder())
