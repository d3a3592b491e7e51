"""For how long an app may ask its store to keep something, as far as its settings tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from offload.content.store import longest_asked
from offload.errors import ConfigurationError
from offload.hooks.renewal import renewed_for
from offload.hooks.rows import CLEANED_DAILY, keeps_rows
from offload.hooks.runtime import Runtime

__all__ = ("Need", "has_pins", "longest_life", "needs", "needs_of_messages")


@dataclass(frozen=True)
class Need:
    """A reason to keep something.

    Attributes:
        seconds: from its publishing on.
        why: the settings that say so, for people.
    """

    seconds: float
    why: str


def needs(runtime: Runtime, *, delay: float = 0.0, retention: float | None = None) -> list[Need]:
    """Return what the settings, and the options of all tasks of the app, ask for; the longest
    first.

    What a single call asks for cannot be known here:

    Args:
        delay: the longest ``eta``, ``countdown`` or ``expires`` that is used, in seconds;
            those of a chain's tasks add up.
        retention: the longest retention that calls ask for (``Offload.put(retention=…)``,
            ``apply_async(offload={"retention": …})``), and that results are read for.

    Raises:
        ConfigurationError: settings or a task's options are wrong; or large results are
            stored and never expire, and *retention* is None.
    """
    found = list(_needs(runtime, delay, retention))
    return sorted(found, key=lambda need: need.seconds, reverse=True)


def needs_of_messages(runtime: Runtime) -> float:
    """Return the longest retention of messages that settings and tasks ask for, in seconds.

    Tasks with wrong options ask for nothing: they can't be sent.
    """
    asked = [runtime.retention, 0.0]
    for name in runtime.app.tasks:
        with suppress(ConfigurationError):
            asked.append(runtime.tasks[name].options.retention or 0.0)
    return max(asked)


def longest_life(longest: Need) -> float:
    """Return the most seconds that a store is asked to keep what is needed so."""
    return longest_asked(longest.seconds)


def has_pins(runtime: Runtime) -> bool:
    """Return whether anything is pinned, and so needed until it is unpinned.

    Raises what the store says.
    """
    return runtime.store.blobs.tracks_holds and any(True for _ in runtime._pins.names())  # noqa: SLF001 (ours)


def _needs(runtime: Runtime, delay: float, retention: float | None) -> Iterator[Need]:
    allowed = delay + runtime.grace
    yield Need(runtime.retention + allowed, "offload_retention")
    yield Need(renewed_for(runtime.grace), "offload_grace, for tasks that run long")
    if retention is not None:
        yield Need(retention + allowed, "the retention given")
    results = runtime.settings.results
    for name in runtime.app.tasks:
        options = runtime.options(name)[0]
        results = results or bool(options.results)
        if options.retention is not None and runtime.tasks[name].options.retention is not None:
            yield Need(options.retention + allowed, f"retention of task {name}")
    expires = runtime.result_expires
    if not results:
        return
    if expires is not None and keeps_rows(runtime.app.backend):
        expires = None if runtime.store.blobs.tracks_holds else expires + CLEANED_DAILY
    if expires is not None:
        yield Need(expires, "result_expires")
    elif retention is None:
        why = "the result backend keeps them until its cleanup"
        if runtime.result_expires is None:
            why = "result_expires is not set"
        raise ConfigurationError(
            f"results never expire ({why}), so no age is safe: say for how long results are read"
        )
