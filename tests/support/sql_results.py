"""Celery's SQLAlchemy result backend, with a database for each test."""

from __future__ import annotations

from pathlib import Path


def new_database(path: Path) -> str:
    """Return the URL of a result backend in the new SQLite file at *path*.

    Its tables exist: older Celery creates them only in the first database of a process.
    """
    from celery.backends.database.models import ResultModelBase
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    ResultModelBase.metadata.create_all(engine)
    return f"db+sqlite:///{path}"
