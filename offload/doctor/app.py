"""Checks of an app's settings, tasks and messages."""

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
    """What the settings mean, where that is not the usual."""
    known = runtime.settings
    if known.mode != "on":
        meaning = {"observe": "only counts", "off": "only resolves what arrives"}[known.mode]
        yield Finding("info", f"offload_mode is {known.mode}: it {meaning}, and stores nothing")
    else:
        yield Finding("ok", f"values from {human_size(known.threshold)} are stored")


def tasks(runtime: Runtime) -> Iterator[Finding]:
    """Whether the options of every task can be read."""
    names = sorted(runtime.app.tasks)
    wrong = False
    for name in names:
        try:
            _ = runtime.tasks[name]
        except ConfigurationError as exc:
            wrong = True
            yield Finding("error", str(exc))
    if not wrong:
        yield Finding("ok", f"the options of {len(names)} tasks are right")


def retention(runtime: Runtime) -> Iterator[Finding]:
    """Whether a value outlives the broker's giving a message a second time."""
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
            f"{why} is {seconds:g} s, but the broker may give a message again after {again:g} s "
            "(visibility_timeout): its values would be gone",
            "make it longer than visibility_timeout and the time that messages wait in queues",
        )
    if not short:
        shown = f"values are kept for {min(kept.values()):g} s or longer"
        outlived = f", more than visibility_timeout ({again:g} s)" if again else ""
        yield Finding("ok", shown + outlived)


def _own_retention(runtime: Runtime, name: str) -> float | None:
    try:
        return runtime.tasks[name].options.retention
    except ConfigurationError:  # which `tasks` tells
        return None


def results(runtime: Runtime) -> Iterator[Finding]:
    """Whether the values of results end."""
    if (
        runtime.result_expires is None
        and runtime.settings.results
        and runtime.app.conf.result_backend
    ):
        yield Finding(
            "warning",
            "results never expire (result_expires is not set), so large ones are kept for 10 "
            "years unless they are forgotten",
            "set result_expires",
        )


def accepted(runtime: Runtime) -> Iterator[Finding]:
    """Whether what publishers send may run code on workers."""
    accepts = {*(runtime.app.conf.accept_content or ()), *runtime.settings.accept}
    if accepts & _PICKLE:
        yield Finding(
            "info",
            "pickle is accepted: whoever can publish messages, or write to the store and knows "
            "its key, can run code on workers",
            "remove pickle from accept_content and offload_accept if you do not need it",
        )
    else:
        yield Finding("ok", "no code is run by decoding: pickle is not accepted")


def node_cache(runtime: Runtime) -> Iterator[Finding]:
    """Whether this machine can keep large values for all its processes."""
    cache = open_cache(runtime.store.url, runtime.settings, runtime.counters)
    if cache is None:
        if runtime.settings.cache == "auto" and runtime.settings.cache_size:
            yield Finding("ok", "there is none: the store is local, or /dev/shm is no tmpfs")
        return
    folder = cache.folder
    try:
        folder.check()
        room = folder.limit()
    except (OSError, ConfigurationError) as exc:
        yield Finding(
            "warning",
            f"it is not used on this machine: {exc}",
            "remove the folder, or set offload_cache to one that this user alone can use",
        )
        return
    if room < _SMALL_CACHE:
        yield Finding(
            "info",
            f"{folder.path} has room for {human_size(room)} only",
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
"""Those that need no store, by what they look at, in the order in which people read them."""
