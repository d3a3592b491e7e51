"""Check an app's settings as early as possible, and say at startup how it is configured.

Settings are checked once the app is finalized, or Django is set up. Otherwise, a wrong setting
would show only when a publisher sends its first large value, perhaps days later. The configuration
stays lazy: nothing here reads it before Celery does, and nothing connects.

(The signals ``on_after_configure`` and ``on_after_finalize`` can't do this: Celery swallows what
their receivers raise.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

from celery.utils.log import get_logger

from offload.content.cache import open_cache
from offload.errors import ConfigurationError
from offload.hooks.celery_internals import config_source
from offload.hooks.runtime import Runtime
from offload.settings import Settings
from offload.text import human_size, printable

_DJANGO = "django.conf:settings"


def check_early(runtime: Runtime, app: Any) -> None:
    """Check the settings of *app* when it is finalized, or now if it already is.

    If Django's settings configure the app, check their names and values once Django is set up, or
    now if it already is. Raises ConfigurationError at that time.
    """
    if app.finalized:
        runtime.check_publisher()
        return
    finalize: Callable[..., None] = app.finalize

    def finalize_and_check(auto: bool = False) -> None:
        is_first = not app.finalized
        finalize(auto=auto)
        if is_first:
            if vars(app).get("finalize") is finalize_and_check:
                del app.finalize  # Celery calls it whenever tasks are looked up
            runtime.check_publisher()

    app.finalize = finalize_and_check
    if config_source(app) == _DJANGO and "django" in sys.modules:
        _check_django(runtime, app)


def _check_django(runtime: Runtime, app: Any) -> None:
    settings = import_module("django.conf").settings
    apps = import_module("django.apps").apps

    def check() -> None:
        if app.configured:
            runtime.read_settings()
            return
        names = [name for name in dir(settings) if "OFFLOAD" in name]
        found = {name: getattr(settings, name) for name in names}
        Settings.read(found, app.namespace, runtime.given)

    if apps.ready:
        check()
        return
    populate: Callable[..., None] = apps.populate  # the last step of django.setup()

    def populate_and_check(*args: Any, **kwargs: Any) -> None:
        populate(*args, **kwargs)
        check()

    apps.populate = populate_and_check


_ABOVE = ".> results:"
"""Start of the line of Celery's banner below which offload's line is inserted."""

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

    Doesn't contact the store.
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
        f"cache {_cache_state(runtime, store)}",
        f"version {metadata.version('offload')}",
    )
    return printable(", ".join(parts))


def _cache_state(runtime: Runtime, store: str) -> str:
    try:
        cache = None if store == "none" else open_cache(store, runtime.settings, runtime.counters)
    except ConfigurationError:  # reported where the cache is used
        cache = None
    if cache is None:
        return "off"
    path = cache.folder.path
    try:
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            return f"off ({path} isn't writable)"
        return f"{path} ({human_size(cache.folder.limit())})"
    except OSError:  # nothing has been cached on this machine yet, or nothing can be
        return str(path)


def _insert(banner: str, said: str) -> str:
    """Add a line to a banner, in the style of the line above, or at its end."""
    lines = banner.splitlines(keepends=True)
    for number, line in enumerate(lines):
        margin, found, _ = line.partition(_ABOVE)
        if found:
            lines.insert(number + 1, f"{margin}.> offload:     {said}\n")
            return "".join(lines)
    return f"{banner}.> offload:     {said}\n"
