"""The task that beat runs: ``offload.gc``, registered on every app with offload."""

from __future__ import annotations

from typing import Any

from celery.utils.log import get_task_logger

from offload.gc import collect
from offload.hooks.runtime import Runtime

__all__ = ("NAME", "install")

NAME = "offload.gc"

_logger = get_task_logger(__name__)


def install(runtime: Runtime, app: Any) -> None:
    """Register the task on *app*, which may be finalized already."""

    def gc(dry_run: bool = False) -> dict[str, Any]:
        """Remove from the store what has ended; see `offload.gc.collect`."""
        collected = collect(runtime.store, dry_run=dry_run)
        if collected.busy is not None:
            _logger.info("nothing done: %s is being swept by %s", collected.store, collected.busy)
        return collected.as_dict()

    # Not shared: else every app of the process would have it, also those without offload.
    app.task(name=NAME, shared=False, ignore_result=True, offload=False)(gc)
