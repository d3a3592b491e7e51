"""Check the keys that classes are verified with, and whether registered classes are pushed."""

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
    """Check which code may be loaded, and whose keys have expired or soon will."""
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
                f"key {key.name} expires in {days:.0f} days",
                "add a new key to offload_verify_keys on all workers, then push with it",
            )
    count = len(runtime.classes.policy.keys)
    yield Finding("ok", f"only classes signed with one of {count} keys are loaded")


def registered(runtime: Runtime) -> Iterator[Finding]:
    """Compare registered classes with their latest versions in the store."""
    if runtime.settings.code == OFF or not runtime.classes.registered:
        return
    statuses = runtime.classes.statuses()
    stale = {name: status for name, status in statuses.items() if status != SYNCED}
    for name, status in stale.items():
        yield Finding(
            "info",
            f"{name} is {status}: its latest version in the store differs from the one here",
            "push it with `celery offload classes push` if this release should be the latest",
        )
    if not stale:
        yield Finding("ok", f"{len(statuses)} registered classes are in sync with the store")
