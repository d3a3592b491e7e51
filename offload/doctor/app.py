"""Check an app's settings, tasks, and node cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from offload.content.cache import open_cache
from offload.errors import ConfigurationError
from offload.hooks.runtime import Runtime, redelivery_time
from offload.inspect.findings import Finding
from offload.text import human_size

__all__ = ("CHECKS", "node_cache")

_PICKLE = frozenset({"pickle", "application/x-python-serialize"})
_SMALL_CACHE = 128 << 20  # bytes


def settings(runtime: Runtime) -> Iterator[Finding]:
    """Report the mode, and the size from which values are stored."""
    known = runtime.settings
    if known.mode != "on":
        meaning = {"observe": "only counts", "off": "only resolves references"}[known.mode]
        yield Finding("info", f"offload_mode is {known.mode}: offload {meaning} and stores nothing")
    else:
        yield Finding("ok", f"values of {human_size(known.threshold)} or more are stored")


def tasks(runtime: Runtime) -> Iterator[Finding]:
    """Check that the options of every task are valid."""
    names = sorted(runtime.app.tasks)
    wrong = False
    for name in names:
        try:
            _ = runtime.tasks[name]
        except ConfigurationError as exc:
            wrong = True
            yield Finding("error", str(exc))
    if not wrong:
        yield Finding("ok", f"the options of {len(names)} tasks are valid")


def retention(runtime: Runtime) -> Iterator[Finding]:
    """Check that values outlive a redelivery of their message by the broker."""
    again = redelivery_time(runtime.app.conf)
    kept = {"offload_retention": runtime.retention}
    for name in runtime.app.tasks:
        own = _own_retention(runtime, name)
        if own is not None:
            kept[f"the retention of task {name}"] = own
    short = {why: seconds for why, seconds in kept.items() if seconds <= again}
    for why, seconds in short.items():
        yield Finding(
            "warning",
            f"{why} is {seconds:g} s, but the broker may redeliver a message after {again:g} s "
            "(visibility_timeout), when its values have expired",
            "make it longer than visibility_timeout plus the time that messages wait in queues",
        )
    if not short:
        shown = f"values are kept for at least {min(kept.values()):g} s"
        outlived = f", more than visibility_timeout ({again:g} s)" if again else ""
        yield Finding("ok", shown + outlived)


def _own_retention(runtime: Runtime, name: str) -> float | None:
    try:
        return runtime.tasks[name].options.retention
    except ConfigurationError:  # `tasks` reports it
        return None


def results(runtime: Runtime) -> Iterator[Finding]:
    """Check that stored results expire."""
    if (
        runtime.result_expires is None
        and runtime.settings.results
        and runtime.app.conf.result_backend
    ):
        yield Finding(
            "warning",
            "results never expire (result_expires is not set), so large ones are kept for 10 "
            "years, or until `forget()` is called",
            "set result_expires",
        )


def accepted(runtime: Runtime) -> Iterator[Finding]:
    """Check whether messages may run code on workers."""
    accepts = {*(runtime.app.conf.accept_content or ()), *runtime.settings.accept}
    if accepts & _PICKLE:
        yield Finding(
            "info",
            "pickle is accepted: anyone who can publish messages, or can write to the store and "
            "knows its key, can run code on workers",
            "remove pickle from accept_content and offload_accept if you don't need it",
        )
    else:
        yield Finding("ok", "decoding runs no code: pickle isn't accepted")


def node_cache(runtime: Runtime) -> Iterator[Finding]:
    """Check that this machine's node cache can be used, and its size."""
    cache = open_cache(runtime.store.url, runtime.settings, runtime.counters)
    if cache is None:
        if runtime.settings.cache == "auto" and runtime.settings.cache_size:
            yield Finding("ok", "not used: the store is local, or /dev/shm isn't a tmpfs")
        return
    folder = cache.folder
    try:
        folder.check()
        room = folder.limit()
    except (OSError, ConfigurationError) as exc:
        yield Finding(
            "warning",
            f"not used on this machine: {exc}",
            "remove the folder, or set offload_cache to one that only this user can access",
        )
        return
    if room < _SMALL_CACHE:
        yield Finding(
            "info",
            f"{folder.path} has room for only {human_size(room)}",
            "give the container a larger /dev/shm (docker run --shm-size), or set offload_cache",
        )
    else:
        yield Finding("ok", f"{folder.path} has room for {human_size(room)}")


CHECKS: Mapping[str, Callable[[Runtime], Iterator[Finding]]] = {
    "settings": settings,
    "tasks": tasks,
    "retention": retention,
    "results": results,
    "accept_content": accepted,
}
"""Checks that need no store, by subject, in the order in which they are shown."""
