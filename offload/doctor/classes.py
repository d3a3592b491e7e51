"""Checks of what classes may be loaded, and whether those registered are in the store."""

from __future__ import annotations

import time
from collections.abc import Iterator

from offload.classes.policy import OFF, SIGNED, TRUSTED
from offload.classes.registry import SYNCED
from offload.hooks.runtime import Runtime
from offload.inspect.findings import Finding

__all__ = ("keys", "registered")

_SOON = 14 * 86400.0  # seconds


def keys(runtime: Runtime) -> Iterator[Finding]:
    """What may be loaded, and by whose signature."""
    mode = runtime.settings.code
    if mode == TRUSTED:
        yield Finding(
            "warning",
            "offload_code is 'trusted': whoever can write to the store can run code on workers",
            "set it to 'signed', with offload_verify_keys",
        )
    if mode != SIGNED:
        return
    runtime.classes.check_keys()
    now = time.time()
    for key in runtime.classes.policy.keys.values():
        if key.is_expired(now):
            yield Finding(
                "warning",
                f"key {key.name} has expired: nothing that it signed is loaded",
                "push again with another key, and take this one out of offload_verify_keys",
            )
        elif key.is_expired(now + _SOON):
            days = ((key.until or now) - now) / 86400
            yield Finding(
                "warning",
                f"key {key.name} expires in {days:.0f} days",
                "add a new one to offload_verify_keys on all workers, then push with that",
            )
    count = len(runtime.classes.policy.keys)
    yield Finding("ok", f"what is signed by one of {count} keys is loaded, and nothing else")


def registered(runtime: Runtime) -> Iterator[Finding]:
    """Whether what is registered is in the store as it is here."""
    if runtime.settings.code == OFF or not runtime.classes.registered:
        return
    statuses = runtime.classes.statuses()
    stale = {name: status for name, status in statuses.items() if status != SYNCED}
    for name, status in stale.items():
        yield Finding(
            "info",
            f"{name} is {status}: its latest version in the store is not the one here",
            "push it, by `celery offload classes push`, if this is the release that is meant",
        )
    if not stale:
        yield Finding("ok", f"{len(statuses)} registered classes are as in the store")
