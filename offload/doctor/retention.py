"""Compute how long an app may need stored values, from its settings and tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from offload.errors import ConfigurationError
from offload.hooks.release import CLEANED_DAILY, keeps_rows
from offload.hooks.renewal import renewed_for
from offload.hooks.runtime import Runtime

__all__ = ("Requirement", "has_pins", "retention_requirements")


@dataclass(frozen=True)
class Requirement:
    """A time for which values are needed.

    Attributes:
        seconds: counted from publishing.
        why: the settings that require it, for people.
    """

    seconds: float
    why: str


def retention_requirements(
    runtime: Runtime, *, delay: float = 0.0, retention: float | None = None
) -> list[Requirement]:
    """Return the retention that the app's settings and tasks require, the longest first.

    Options of single calls can't be known here:

    Args:
        delay: the longest ``eta``, ``countdown``, or ``expires`` that is used, in seconds;
            those of a chain's tasks add up.
        retention: the longest retention that calls ask for (``Offload.put(retention=…)``,
            ``apply_async(offload={"retention": …})``), and that results are read for.

    Raises:
        ConfigurationError: settings or a task's options are wrong; or large results are
            stored and never expire, and *retention* is None.
    """
    found = list(_requirements(runtime, delay, retention))
    return sorted(found, key=lambda each: each.seconds, reverse=True)


def has_pins(runtime: Runtime) -> bool:
    """Return whether any value is pinned, and so needed until it is unpinned. Raises StoreError."""
    return runtime.store.blobs.tracks_holds and any(True for _ in runtime.pins.names())


def _requirements(runtime: Runtime, delay: float, retention: float | None) -> Iterator[Requirement]:
    allowed = delay + runtime.grace
    yield Requirement(runtime.retention + allowed, "offload_retention")
    yield Requirement(renewed_for(runtime.grace), "offload_grace, for tasks that run long")
    if retention is not None:
        yield Requirement(retention + allowed, "the given retention")
    results = runtime.settings.results
    for name in runtime.app.tasks:
        options = runtime.options(name)[0]
        results = results or bool(options.results)
        if options.retention is not None and runtime.tasks[name].options.retention is not None:
            yield Requirement(options.retention + allowed, f"retention of task {name}")
    expires = runtime.result_expires
    if not results:
        return
    if expires is not None and keeps_rows(runtime.app.backend):
        expires = None if runtime.store.blobs.tracks_holds else expires + CLEANED_DAILY
    if expires is not None:
        yield Requirement(expires, "result_expires")
    elif retention is None:
        why = "the result backend keeps them until its cleanup"
        if runtime.result_expires is None:
            why = "result_expires is not set"
        raise ConfigurationError(
            f"results never expire ({why}), so no age is safe: pass how long results are read"
        )
