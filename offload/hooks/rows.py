"""Result backends that keep a result until their cleanup: its value is kept as long.

Redis and Memcached forget a result after ``result_expires``. A database row stays readable until
``celery.backend_cleanup`` deletes it, and for good where nobody runs that. So the hold of its value
has no end of its own: the cleanup releases it, as ``forget()`` does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from offload.content.holds import holder
from offload.hooks.release import release
from offload.hooks.runtime import Runtime
from offload.ref import Ref
from offload.settings import TaskOptions

__all__ = ("CLEANED_DAILY", "cleanup_releasing", "keeps_rows", "result_ttl")

CLEANED_DAILY = 86400.0
"""Seconds between two cleanups, by Celery's own schedule for beat."""
_FOREVER = 10 * 365 * 86400.0  # for results that never expire
_MARGIN = timedelta(minutes=1)  # what expires while a cleanup begins

Finder = Callable[[Any, datetime], Iterable[str]]


def keeps_rows(backend: Any) -> bool:
    """Return whether *backend* keeps results until its cleanup, and says which these are."""
    return _finder(backend) is not None


def result_ttl(runtime: Runtime, options: TaskOptions) -> float:
    """Return for how many seconds a stored result is needed; a retention that is set
    prolongs that, its default doesn't.
    """
    expires = runtime.result_expires
    if expires is not None and keeps_rows(runtime.app.backend):
        # Until a cleanup releases it; where nothing can be released, until the next one.
        expires = _FOREVER if runtime.store.blobs.tracks_holds else expires + CLEANED_DAILY
    return max(options.retention or 0.0, expires or _FOREVER)


def cleanup_releasing(
    runtime: Runtime, backend: Any, find_ref: Callable[[str], Ref[Any] | None]
) -> Callable[..., Any]:
    """Return the backend's ``cleanup``, releasing the values of the results that it deletes.

    What has expired is released first, so that nothing leaks if the cleanup is interrupted; the
    values live for the grace in any case.
    """
    cleanup: Callable[..., Any] = backend.cleanup
    finder = _finder(backend)

    def offload_cleanup(*args: Any, **options: Any) -> Any:
        expires = runtime.result_expires
        if finder is None or expires is None or not runtime.store.blobs.tracks_holds:
            return cleanup(*args, **options)
        before = datetime.now(timezone.utc) - timedelta(seconds=expires)
        expired = set(finder(backend, before))
        about_to = {
            task_id: ref
            for task_id in set(finder(backend, before + _MARGIN)) - expired
            if (ref := find_ref(task_id)) is not None
        }
        for task_id in expired:
            _release(runtime, task_id, find_ref(task_id))
        done = cleanup(*args, **options)
        for task_id, ref in about_to.items():
            if find_ref(task_id) is None:
                _release(runtime, task_id, ref)
        return done

    return offload_cleanup


def _release(runtime: Runtime, task_id: str, ref: Ref[Any] | None) -> None:
    if ref is not None:
        release(runtime, [ref], holder("result", task_id))


def _finder(backend: Any) -> Finder | None:
    """Return a function that yields the ids of results to be cleaned up; None for a backend that
    needs none, or that we don't know. Nothing is imported for it.
    """
    for (module, name), finder in _FINDERS.items():
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(backend, kind):
            return finder
    return None


def _in_database(backend: Any, before: datetime) -> Iterator[str]:
    task = backend.task_cls
    session = backend.ResultSession()
    try:
        rows = session.query(task.task_id).filter(task.date_done < before).all()
    finally:
        session.close()
    return (row[0] for row in rows)


def _in_django(backend: Any, before: datetime) -> Iterator[str]:
    rows = backend.TaskModel.objects.filter(date_done__lt=before)
    return iter(list(rows.values_list("task_id", flat=True)))


def _in_files(backend: Any, before: datetime) -> Iterator[str]:
    prefix = _text(backend.task_keyprefix)
    for path in Path(_text(backend.path)).glob(f"{prefix}*"):
        if path.stat().st_mtime < before.timestamp():
            yield path.name[len(prefix) :]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


_FINDERS: dict[tuple[str, str], Finder] = {
    ("celery.backends.database", "DatabaseBackend"): _in_database,
    ("django_celery_results.backends.database", "DatabaseBackend"): _in_django,
    ("celery.backends.filesystem", "FilesystemBackend"): _in_files,
}
