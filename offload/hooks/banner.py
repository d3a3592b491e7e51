"""One line about offload in a worker's banner and in its log."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

from celery.utils.log import get_logger

from offload.content.cache import open_cache
from offload.errors import ConfigurationError
from offload.hooks.runtime import Runtime
from offload.text import human_size, printable

__all__ = ("add_to_banner", "log_summary", "summary")

_ABOVE = ".> results:"
"""Of Celery's banner, the line under which ours stands."""

_logger = get_logger(__name__)


def log_summary(runtime: Runtime) -> None:
    _logger.info("offload: %s", summary(runtime))


def add_to_banner(runtime: Runtime, worker: Any) -> None:
    """Add `summary` to the banner that *worker* prints when it starts.

    Celery prints what the worker's method ``startup_info`` returns. A worker that isn't a program,
    such as one within a test, has no banner.
    """
    startup_info: Callable[..., str] | None = getattr(worker, "startup_info", None)
    if startup_info is None:
        return

    def with_offload(*args: Any, **kwargs: Any) -> str:
        return _insert(startup_info(*args, **kwargs), summary(runtime))

    worker.startup_info = with_offload


def summary(runtime: Runtime) -> str:
    """Describe store, mode, threshold, node cache, and version, without credentials.

    The store isn't asked.
    """
    settings = runtime.settings
    try:
        store = runtime.store.url
    except ConfigurationError:  # mode ``on`` refuses to start without one
        store = "none"
    parts = (
        f"store {store}",
        f"mode {settings.mode}",
        f"threshold {human_size(settings.threshold)}",
        f"cache {_cache(runtime, store)}",
        f"version {metadata.version('offload')}",
    )
    return printable(", ".join(parts))


def _cache(runtime: Runtime, store: str) -> str:
    try:
        cache = None if store == "none" else open_cache(store, runtime.settings, runtime.counters)
    except ConfigurationError:  # reported where the cache is used
        cache = None
    if cache is None:
        return "off"
    try:
        return f"{cache.folder.path} ({human_size(cache.folder.limit())})"
    except OSError:  # nothing has been cached on this machine yet, or nothing can be
        return str(cache.folder.path)


def _insert(banner: str, said: str) -> str:
    """Add a line to a banner, in the style of the line above, or at its end."""
    lines = banner.splitlines(keepends=True)
    for number, line in enumerate(lines):
        margin, found, _ = line.partition(_ABOVE)
        if found:
            lines.insert(number + 1, f"{margin}.> offload:     {said}\n")
            return "".join(lines)
    return f"{banner}.> offload:     {said}\n"
