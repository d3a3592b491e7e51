"""Find messages whose values are about to expire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from offload.errors import ConfigurationError, StoreError, StoreUnavailable
from offload.hooks.runtime import Runtime, waits_of
from offload.inspect.findings import Finding
from offload.stores.capabilities import hold_tracking_of
from offload.text import human_duration

__all__ = ("Expiring", "check_messages", "expiring_messages")

NEAR = 0.25
"""Share of a message's time; less than that left is worth a warning."""
_PAGE = 1000  # blobs whose holders are read together
_ENOUGH = 200_000  # blobs that are examined


@dataclass(frozen=True)
class Expiring:
    """Messages with less than `NEAR` of their time left.

    Attributes:
        count: how many there are.
        holder: the one whose values expire first; "" if there is none.
        left: seconds until they do.
    """

    count: int = 0
    holder: str = ""
    left: float = 0.0


def expiring_messages(runtime: Runtime) -> Expiring:
    """Return the messages whose values are about to expire, unless something else holds them.

    Messages that expire themselves aren't among them, nor are those of a short retention that
    haven't waited for most of it. Finds nothing if the store doesn't track holds.
    """
    tracking = hold_tracking_of(runtime.store)
    if tracking is None:
        return Expiring()
    longest = NEAR * _longest_retention(runtime)
    infos = islice(runtime.store.blobs.scan(), _ENOUGH)
    soon = (info.digest for info in infos if info.ttl <= longest)
    found: dict[str, float] = {}
    while page := list(islice(soon, _PAGE)):
        for holds in tracking.longest_holds(page):
            if holds and _is_near(*max(holds.items(), key=lambda item: item[1])):
                found.update(item for item in holds.items() if _is_near(*item))
    holder = min(found, key=lambda name: found[name], default="")
    return Expiring(len(found), holder, found.get(holder, 0.0))


def check_messages(runtime: Runtime) -> Iterator[Finding]:
    """Yield a warning if the values of waiting messages are about to expire."""
    try:
        found = expiring_messages(runtime)
    except StoreUnavailable:
        raise
    except StoreError as exc:  # a right to list keys that nothing else needs
        yield Finding("info", f"can't look for messages about to lose their values: {exc}")
        return
    if not found.count:
        return
    task = found.holder.removeprefix("task:").rpartition("+")[0]
    yield Finding(
        "warning",
        f"{found.count} messages have waited for most of their retention: the values of the first, "
        f"task {task}, expire in {human_duration(found.left)}, and it would fail with BlobMissing",
        "run workers for its queue, or discard it with `celery offload purge QUEUE`; raise "
        "offload_retention for future messages",
    )


def _is_near(holder: str, left: float) -> bool:
    waits = waits_of(holder)
    return waits is not None and left <= NEAR * waits


def _longest_retention(runtime: Runtime) -> float:
    """Return the longest retention of messages that settings and tasks ask for, in seconds.

    Tasks with wrong options ask for none: they can't be sent.
    """
    asked = [runtime.retention, 0.0]
    for name in runtime.app.tasks:
        with suppress(ConfigurationError):
            asked.append(runtime.tasks[name].options.retention or 0.0)
    return max(asked)
