"""Retention: what the app requires, lifecycle rules for S3, and messages about to lose values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from offload.catalog.names import RECORDS
from offload.errors import ConfigurationError, StoreError, StoreUnavailable
from offload.hooks.delivery import renewed_for
from offload.hooks.message import waits_of
from offload.hooks.release import CLEANED_DAILY, keeps_rows
from offload.hooks.runtime import Runtime
from offload.inspect import Finding
from offload.stores.capabilities import hold_tracking_of, tiers_of
from offload.stores.protocols import Store
from offload.text import human_duration

DAY = 86400.0  # seconds
NEAR = 0.25
"""Share of a message's retention; a warning is due when less than that is left."""
_PAGE = 1000  # blobs whose holders are read in one request
_ENOUGH = 200_000  # maximum number of blobs to examine


@dataclass(frozen=True)
class Requirement:
    """A minimum time for which values must be kept.

    Attributes:
        seconds: the time, counted from publishing.
        why: the settings that require it, as text for people.
    """

    seconds: float
    why: str


def retention_requirements(
    runtime: Runtime, *, delay: float = 0.0, retention: float | None = None
) -> list[Requirement]:
    """Return the retention that the app's settings and tasks require, longest first.

    The app can't know options of single calls, so pass these:

    Args:
        delay: the longest ``eta``, ``countdown``, or ``expires`` in use, in seconds; for a chain,
            their sum.
        retention: the longest retention that calls request (``Offload.put(retention=…)``,
            ``apply_async(offload={"retention": …})``) and for which results are read, in seconds.

    Raises:
        ConfigurationError: settings or a task's options are invalid; or large results are
            stored and never expire, and *retention* is None.
    """
    found = list(_requirements(runtime, delay, retention))
    return sorted(found, key=lambda each: each.seconds, reverse=True)


def has_pins(runtime: Runtime) -> bool:
    """Return whether any value is pinned. Raises StoreError."""
    return runtime.store.blobs.tracks_holds and any(True for _ in runtime.pins.names())


def has_catalog(runtime: Runtime) -> bool:
    """Return whether the store has a catalog with any version. Raises StoreError."""
    try:
        return any(True for _ in tiers_of(runtime.store)[0].pointers.names(RECORDS))
    except ConfigurationError:  # the store has no pointers
        return False


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


@dataclass(frozen=True)
class Rule:
    """A lifecycle rule that deletes objects some days after they were written.

    Attributes:
        prefix: the prefix of their keys.
        days: whole days.
    """

    bucket: str
    prefix: str
    days: int

    def as_dict(self) -> dict[str, Any]:
        """Return the rule as an item of ``Rules`` in S3's API.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_LifecycleRule.html

        In a versioned bucket, it deletes noncurrent versions after a day: nothing reads them.
        """
        return {
            "ID": f"offload {self.prefix}"[:255],
            "Status": "Enabled",
            "Filter": {"Prefix": self.prefix},
            "Expiration": {"Days": self.days},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
        }


def lifecycle_rule(store: Store, longest: float) -> Rule | None:
    """Return the rule with the fewest days that never deletes a blob of *store* that is needed.

    Return None if *store* isn't in S3.

    Args:
        longest: the longest time that one hold keeps a blob, in seconds.
    """
    if not store.url.startswith("s3://"):
        return None
    from offload.stores.s3.store import S3Store  # needs boto3

    if not isinstance(store, S3Store):
        return None
    days = days_for(store.blobs.life(longest))
    return Rule(store.client.bucket, f"{store.client.prefix}blobs/", days)


def days_for(life: float) -> int:
    """Return the days that a rule needs for objects that live *life* seconds.

    S3 counts from the time of writing and rounds up to the next midnight (UTC). Servers that count
    dates instead may delete up to a day early.
    """
    return math.ceil(life / DAY) + 1


@dataclass(frozen=True)
class Expiring:
    """Messages with less than `NEAR` of their retention left.

    Attributes:
        count: their number.
        holder: the holder whose values expire first; "" if *count* is 0.
        left: seconds until that.
    """

    count: int = 0
    holder: str = ""
    left: float = 0.0


def expiring_messages(runtime: Runtime) -> Expiring:
    """Find messages whose values are about to expire and have no other holder.

    Doesn't count messages that expire themselves, nor messages with a short retention that haven't
    waited for most of it. Finds nothing if the store doesn't track holds.
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
    except StoreError as exc:  # nothing else needs the right to list keys
        yield Finding("info", f"can't look for messages about to lose their values: {exc}")
        return
    if not found.count:
        return
    task = found.holder.removeprefix("task:").rpartition("+")[0]
    yield Finding(
        "warning",
        f"{found.count} messages have waited for most of their retention: the values of the first, "
        f"task {task}, expire in {human_duration(found.left)}; it would then fail with BlobMissing",
        "run workers for its queue, or discard it with `celery offload purge QUEUE`; raise "
        "offload_retention for future messages",
    )


def _is_near(holder: str, left: float) -> bool:
    waits = waits_of(holder)
    return waits is not None and left <= NEAR * waits


def _longest_retention(runtime: Runtime) -> float:
    """Return the longest retention of messages that settings and tasks set, in seconds.

    Ignores tasks with invalid options, which can't be sent.
    """
    asked = [runtime.retention, 0.0]
    for name in runtime.app.tasks:
        with suppress(ConfigurationError):
            asked.append(runtime.tasks[name].options.retention or 0.0)
    return max(asked)
