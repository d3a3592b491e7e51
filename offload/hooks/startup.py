"""Check an app's settings as early as possible: once it is finalized, or Django is set up.

Else a publisher would learn of a wrong setting from its first large value, perhaps days later. The
configuration stays lazy: nothing here reads it before Celery does, and nothing connects.

(The signals ``on_after_configure`` and ``on_after_finalize`` can't do this: Celery swallows what
their receivers raise.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from offload.hooks.celery_internals import config_source
from offload.hooks.runtime import Runtime
from offload.settings import Settings

__all__ = ("check_early",)

_DJANGO = "django.conf:settings"


def check_early(runtime: Runtime, app: Any) -> None:
    """Check the settings of *app* when it is finalized, or now if it is.

    Where Django's settings configure the app, check their names and values once Django is set up,
    or now if it is. Raises ConfigurationError, then or now.
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
