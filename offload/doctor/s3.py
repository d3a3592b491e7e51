"""Check an S3 bucket and its server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from offload.doctor.retention import Rule
from offload.doctor.servers import clock_finding, stray_findings
from offload.errors import ConfigurationError, StoreError
from offload.inspect import Finding
from offload.stores.bases import BLOB_NAME
from offload.stores.capabilities import SMALL_FILE
from offload.stores.s3.client import PROBE, Conditions, S3Client
from offload.stores.s3.store import record_name

_OWN: Mapping[str, Callable[[str], object]] = {
    "blobs": BLOB_NAME.fullmatch,
    "leases": record_name,
    "pointers": record_name,
    "probe": PROBE.fullmatch,
    "stats": SMALL_FILE.fullmatch,
}
_PAGES = 10  # pages of 1000 keys to examine
_COMMAND = "write a rule with `celery offload store lifecycle`"


def diagnose(client: S3Client, conditions: Conditions, rule: Rule | None) -> Iterator[Finding]:
    """Check the server's clock, conditional deletes, stray objects, and lifecycle rules.

    Args:
        rule: the safe rule with the fewest days; None if no rule is safe.
    """
    yield _clock(client)
    yield _deletes(conditions)
    yield from stray_findings(strays(client), "keep other files out of the prefix")
    try:
        _, answer = client.ask("get_bucket_lifecycle_configuration", (404, 501))
    except StoreError as exc:
        yield Finding(
            "info",
            f"the bucket's lifecycle rules can't be read ({exc})",
            "grant s3:GetLifecycleConfiguration to check them",
        )
        return
    yield from _rules(answer.get("Rules", []), client.prefix, rule)


def strays(client: S3Client) -> Iterator[str]:
    """Yield keys below the store's prefix that don't belong to it, from the first few pages."""
    for folder, is_own in _OWN.items():
        for page in islice(client.pages(folder), _PAGES):
            start = len(f"{client.prefix}{folder}/")
            names = (str(entry["Key"])[start:] for entry in page)
            yield from (f"{client.prefix}{folder}/{name}" for name in names if not is_own(name))


def _clock(client: S3Client) -> Finding:
    client.ask("list_objects_v2", records=True, Prefix=f"{client.prefix}blobs/", MaxKeys=1)
    earliest, latest = client.bounds()
    now = time.time()
    return clock_finding(max(earliest - now, 0.0) or min(latest - now, 0.0))


def _deletes(conditions: Conditions) -> Finding:
    try:
        conditions.require_deletes()
    except ConfigurationError as exc:
        return Finding("warning", str(exc), _COMMAND)
    return Finding("ok", "it supports conditional deletes, so it can be swept")


def _rules(rules: list[Mapping[str, Any]], own: str, least: Rule | None) -> Iterator[Finding]:
    """Report whether each lifecycle rule spares what the store needs.

    Args:
        own: the store's prefix.
        least: the safe rule with the fewest days; None if no rule is safe.
    """
    for rule in rules:
        expiration = rule.get("Expiration", {})
        if rule.get("Status") != "Enabled" or not {"Days", "Date"} & set(expiration):
            continue
        prefix = _prefix(rule)
        if prefix is None:
            continue
        name, when = rule.get("ID", ""), _when(expiration)
        for folder in ("pointers", "leases"):
            if _overlap(prefix, f"{own}{folder}/"):
                yield Finding(
                    "error",
                    f"the lifecycle rule {name!r} deletes {own}{folder}/ {when}, including the "
                    "key that signs references",
                    f"limit it to {own}blobs/: {_COMMAND}",
                )
                break
        if not _overlap(prefix, f"{own}blobs/"):
            continue
        days = expiration.get("Days")
        if least is None:
            yield Finding(
                "error",
                f"the lifecycle rule {name!r} deletes {own}blobs/ {when}, but a blob there "
                "may be needed forever: by a pin, a catalog, or a result that never expires",
                "remove the rule and run `celery offload gc`, or set result_expires",
            )
        elif days is None or days + 1 < least.days:  # least.days has a day of margin
            yield Finding(
                "error",
                f"the lifecycle rule {name!r} deletes {own}blobs/ {when}, but blobs may be "
                f"needed for {least.days} days",
                _COMMAND,
            )
        else:
            yield Finding("ok", f"the lifecycle rule {name!r} deletes {own}blobs/ {when}")


def _prefix(rule: Mapping[str, Any]) -> str | None:
    """Return a rule's key prefix; None if the rule applies only to tagged objects."""
    chosen: Mapping[str, Any] = rule.get("Filter") or {}
    chosen = chosen.get("And", chosen)
    if chosen.get("Tag") or chosen.get("Tags"):
        return None  # offload's objects have no tags
    return str(chosen.get("Prefix") or rule.get("Prefix") or "")


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _when(expiration: Mapping[str, Any]) -> str:
    if "Days" in expiration:
        days = expiration["Days"]
        return f"after {days} day{'s' * (days != 1)}"
    return f"on {expiration['Date']}"
