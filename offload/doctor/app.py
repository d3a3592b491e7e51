"""Check an app's settings, tasks, node cache, classes, keys, and dependencies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from packaging.version import InvalidVersion, Version

from offload.classes.listing import SYNCED
from offload.classes.policy import OFF, SIGNED, TRUSTED
from offload.content.cache import open_cache
from offload.doctor.tested import TESTED
from offload.errors import ConfigurationError
from offload.hooks.runtime import Runtime, redelivery_time
from offload.inspect import Finding
from offload.text import human_count, human_duration, human_size

_PICKLE = frozenset({"pickle", "application/x-python-serialize"})
_SMALL_CACHE = 128 << 20  # bytes; less room in the node cache is worth a warning
_SOON = 14 * 86400.0  # seconds; warn this long before a key expires


def settings(runtime: Runtime) -> Iterator[Finding]:
    """Report the mode, the threshold, and the size limit of messages."""
    known = runtime.settings
    if known.mode != "on":
        meaning = {"observe": "only counts", "off": "only resolves references"}[known.mode]
        yield Finding("info", f"offload_mode is {known.mode}: offload {meaning} and stores nothing")
    else:
        yield Finding("ok", f"values of {human_size(known.threshold)} or more are stored")
    try:
        limit = runtime.message_limit
    except ConfigurationError:  # another check reports that there is no store
        limit = None
    if limit is not None:
        yield Finding("ok", f"messages are limited to {human_size(limit.size)}")


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
        yield Finding("ok", f"the options of {human_count(len(names), 'task')} are valid")


def retention(runtime: Runtime) -> Iterator[Finding]:
    """Check that values outlive a redelivery of their message by the broker."""
    delay = redelivery_time(runtime.app.conf)
    kept = {"offload_retention": runtime.retention}
    for name in runtime.app.tasks:
        own = _own_retention(runtime, name)
        if own is not None:
            kept[f"the retention of task {name}"] = own
    short = {why: seconds for why, seconds in kept.items() if seconds <= delay}
    for why, seconds in short.items():
        yield Finding(
            "warning",
            f"{why} is {human_duration(seconds)}, but the broker may redeliver a message after "
            f"{human_duration(delay)} (visibility_timeout); by then its values have expired",
            "make it longer than visibility_timeout plus the time that messages wait in queues",
        )
    if not short:
        shown = f"values of waiting messages are kept for {human_duration(min(kept.values()))}"
        outlived = f", more than visibility_timeout ({human_duration(delay)})" if delay else ""
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
            "results never expire (result_expires is not set), so large results are kept for 10 "
            "years, or until `forget()` is called",
            "set result_expires",
        )


def accepted(runtime: Runtime) -> Iterator[Finding]:
    """Check whether messages may run code on workers."""
    accepts = {*(runtime.app.conf.accept_content or ()), *runtime.settings.accept}
    if accepts & _PICKLE:
        yield Finding(
            "info",
            "pickle is accepted: anyone who can publish messages, or who can write to the store "
            "and knows its key, can run code on workers",
            "remove pickle from accept_content and offload_accept if you don't need it",
        )
    else:
        yield Finding("ok", "decoding runs no code: pickle isn't accepted")


def node_cache(runtime: Runtime) -> Iterator[Finding]:
    """Check that this machine's node cache is usable and large enough."""
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


def class_keys(runtime: Runtime) -> Iterator[Finding]:
    """Check which code may be loaded, and which keys have expired or soon will."""
    mode = runtime.settings.code
    if mode == TRUSTED:
        yield Finding(
            "warning",
            "offload_code is 'trusted': anyone who can write to the store can run code on workers",
            "set it to 'signed', and list keys in offload_verify_keys",
        )
    if mode != SIGNED:
        return
    runtime.classes.check_keys()
    now = time.time()
    for key in runtime.classes.policy.keys.values():
        if key.is_expired(now):
            yield Finding(
                "warning",
                f"key {key.name} has expired: classes signed with it aren't loaded",
                "push them again with another key, and remove this one from offload_verify_keys",
            )
        elif key.is_expired(now + _SOON):
            days = ((key.until or now) - now) / 86400
            yield Finding(
                "warning",
                f"key {key.name} expires in {human_count(round(days), 'day')}",
                "add a new key to offload_verify_keys on all workers, then push with it",
            )
    count = len(runtime.classes.policy.keys)
    keys = "one key" if count == 1 else f"one of {count} keys"
    yield Finding("ok", f"only classes signed with {keys} are loaded")


def pushed_classes(runtime: Runtime) -> Iterator[Finding]:
    """Compare registered classes with their latest versions in the store."""
    if runtime.settings.code == OFF or not runtime.classes.registered:
        return
    statuses = runtime.classes.statuses()
    stale = {name: status for name, status in statuses.items() if status != SYNCED}
    for name, status in stale.items():
        yield Finding(
            "info",
            f"{name} is {status}: the latest version in the store differs from the one here",
            "push it with `celery offload classes push` if this release should be the latest",
        )
    if not stale:
        synced = human_count(len(statuses), "registered class is", "registered classes are")
        yield Finding("ok", f"{synced} in sync with the store")


def dependencies() -> Iterator[Finding]:
    """Compare installed versions with the newest tested ones, skipping what isn't installed."""
    newer = [
        f"{name} {installed} (tested: {tested})"
        for name, tested in TESTED.items()
        if (installed := _installed(name)) is not None and installed > Version(tested)
    ]
    if newer:
        yield Finding(
            "info",
            f"newer than the versions tested with offload: {', '.join(newer)}",
            "if something fails, install the tested versions first",
        )
    else:
        yield Finding("ok", "no installed version is newer than the tested ones")


def _installed(name: str) -> Version | None:
    try:
        return Version(version(name))
    except (PackageNotFoundError, InvalidVersion):
        return None


CHECKS: Mapping[str, Callable[[Runtime], Iterator[Finding]]] = {
    "settings": settings,
    "tasks": tasks,
    "retention": retention,
    "results": results,
    "accept_content": accepted,
}
"""Checks of the configuration by subject, in display order."""


_MOST = 1000  # blobs to examine
_MOVE = "run `celery offload reencrypt`; values of messages and results expire by themselves"


def encryption(runtime: Runtime) -> Iterator[Finding]:
    """Report how many of the first 1,000 blobs aren't encrypted with the first key.

    Yields nothing, and reads nothing, if there are no encryption keys.
    """
    keyring = runtime.keyring
    if keyring is None:
        return
    from offload.reencrypt import PLAIN, count_by_key  # needs the package cryptography

    first, *others = [key.id for key in keyring.keys]
    found = {key: under.count for key, under in count_by_key(runtime.store, _MOST).items()}
    total = sum(found.values())
    these = f"of {total:,} blobs"
    if total >= _MOST:
        these += " examined"
    if found.keys() <= {first}:
        yield Finding("ok", f"all {these} are encrypted with the first key, {first}")
    for key, count in sorted(found.items()):
        if key == first:
            continue
        if key == PLAIN and keyring.required:
            yield Finding(
                "error",
                f"{count:,} {these} aren't encrypted, so they are refused: offload_encryption is "
                "'required'",
                "find the process that writes without keys; to keep older values, run "
                "`celery offload reencrypt` without 'required'",
            )
        elif key == PLAIN:
            yield Finding(
                "warning",
                f"{count:,} {these} aren't encrypted: they were written before keys were set, or "
                "by a process without keys",
                f"{_MOVE}; then set offload_encryption = 'required'",
            )
        elif key in others:
            yield Finding(
                "info", f"{count:,} {these} are encrypted with {key}, not the first key", _MOVE
            )
        else:
            yield Finding(
                "error",
                f"{count:,} {these} are encrypted with {key}, which this process doesn't have",
                "add that key to offload_encryption_keys, after the first: later keys only decrypt",
            )
