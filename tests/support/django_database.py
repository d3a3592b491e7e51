"""Django's settings, which a process sets up once, with a database for each test."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

APPS = ("django_celery_results", "django_celery_beat")


def use_database(path: str | Path) -> None:
    """Make Django use the SQLite file at *path*; set Django up if that isn't done yet."""
    import django
    from django.conf import settings
    from django.db import connections

    if not settings.configured:
        database = {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": {"timeout": 30}}
        settings.configure(
            DATABASES={"default": {**database, "NAME": str(path)}},
            INSTALLED_APPS=[app for app in APPS if find_spec(app)],
            DEFAULT_AUTO_FIELD="django.db.models.AutoField",
            USE_TZ=True,
        )
        django.setup()
    connections.close_all()
    # Connections of all threads read their settings from this one dict.
    connections.settings["default"]["NAME"] = str(path)
