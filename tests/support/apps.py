"""The current app, and processes without offload."""

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


class _Finder:
    def find_spec(self, name, *_args):
        if name.partition(".")[0] == "offload":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def block_offload():
    """Make imports of offload fail in this process, as if it weren't installed."""
    sys.meta_path.insert(0, _Finder())
