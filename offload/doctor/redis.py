"""Check a Redis or Valkey server and its configuration."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from offload.doctor.server import Capacity, clock_finding
from offload.errors import StoreError
from offload.inspect.findings import Finding
from offload.stores.redis.client import RedisClient
from offload.stores.redis.driver_errors import is_denied
from offload.text import human_size

__all__ = ("capacity", "diagnose")

OLDEST = (6, 2)
"""The first version with ``ZADD GT``, which the scripts use."""
_FULL = 0.9  # of maxmemory


def diagnose(client: RedisClient) -> Iterator[Finding]:
    """Check each server; in a Cluster, each primary."""
    try:
        for name, info in client.each_server("INFO"):
            where = f"{name}: " if name else ""
            for finding in (
                _version(info),
                _eviction(info),
                _memory(info),
                _persistence(info),
                *_replication(info, client.replicas),
            ):
                yield Finding(finding.level, where + finding.what, finding.remedy)
    except StoreError as exc:
        if not _is_denied(exc):
            raise
        yield Finding(
            "warning",
            "its user may not run INFO, so version, memory, eviction, and persistence weren't "
            "checked",
            "grant its user +info to check them; nothing else needs it",
        )
    sent = time.time()
    for name, (seconds, micros) in client.each_server("TIME"):
        ahead = int(seconds) + int(micros) / 1e6 - (sent + time.time()) / 2
        finding = clock_finding(ahead)
        yield Finding(finding.level, f"{name}: {finding.what}" if name else finding.what)
        sent = time.time()


def capacity(client: RedisClient) -> Iterator[Capacity]:
    """Yield how much each server holds; nothing if INFO is denied."""
    for name, info in _allowed(client.each_server("INFO")):
        kind, version = _kind(info)
        yield Capacity(
            server=name,
            kind=f"{kind} {version}".strip(),
            used=_number(info, "used_memory"),
            limit=_number(info, "maxmemory") or None,
            policy=str(info.get("maxmemory_policy", "")),
            evicted=_number(info, "evicted_keys"),
            keys=_keys(info, client.database),
        )


def _allowed(answers: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    try:
        yield from answers
    except StoreError as exc:
        if not _is_denied(exc):
            raise


def _is_denied(exc: StoreError) -> bool:
    return isinstance(exc.__cause__, Exception) and is_denied(exc.__cause__)


def _number(info: Mapping[str, Any], name: str) -> int | None:
    value = info.get(name)
    return value if type(value) is int else None


def _keys(info: Mapping[str, Any], database: int) -> int | None:
    space = info.get(f"db{database}", {"keys": 0})  # INFO leaves out an empty database
    return _number(space, "keys") if isinstance(space, Mapping) else None


def _kind(info: Mapping[str, Any]) -> tuple[str, str]:
    if "valkey_version" in info:
        return "Valkey", str(info["valkey_version"])
    return "Redis", str(info.get("redis_version", ""))


def _version(info: Mapping[str, Any]) -> Finding:
    said = str(info.get("redis_version", ""))
    shown = " ".join(_kind(info))
    try:
        known = tuple(int(part) for part in said.split(".")[:2])
    except ValueError:
        return Finding("info", f"the server doesn't report its version ({said!r})")
    if known < OLDEST:
        return Finding("error", f"{shown} is too old", "use Redis 6.2 or later, or Valkey")
    return Finding("ok", shown)


def _eviction(info: Mapping[str, Any]) -> Finding:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return Finding("ok", "maxmemory-policy is noeviction")
    return Finding(
        "warning",
        f"maxmemory-policy is {policy}: when memory is full, the server evicts values that "
        "messages refer to, and their tasks fail with BlobMissing",
        "set maxmemory-policy noeviction; if others use the server as a cache, give offload its "
        "own",
    )


def _memory(info: Mapping[str, Any]) -> Finding:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most:
        return Finding(
            "info",
            f"maxmemory is not set; {human_size(used)} are used",
            "set maxmemory below the machine's memory: a full server then fails publishes with "
            "StoreUnavailable instead of being killed",
        )
    shown = f"{human_size(used)} of {human_size(most)} (maxmemory) are used"
    if used > most * _FULL:
        return Finding("warning", shown, "raise maxmemory, or lower offload_retention")
    return Finding("ok", shown)


def _replication(info: Mapping[str, Any], wanted: int) -> Iterator[Finding]:
    """Check whether a failover can lose acknowledged writes."""
    connected = int(info.get("connected_slaves", 0))
    if connected < wanted:
        yield Finding(
            "error",
            f"{connected} replicas are connected, and wait_replicas is {wanted}: no write succeeds",
            "connect them, or lower wait_replicas in the store's URL",
        )
    elif connected and not wanted and "min_slaves_good_slaves" not in info:
        yield Finding(
            "warning",
            f"it has replicas ({connected}), but no write waits for them: a failover loses what "
            "they don't have yet, and tasks that need it fail with BlobMissing",
            "add ?wait_replicas=1 to the store's URL, or set min-replicas-to-write on the server",
        )
    elif connected:
        how = f"wait_replicas is {wanted}" if wanted else "min-replicas-to-write is set"
        yield Finding("ok", f"it has replicas ({connected}), and {how}")


def _persistence(info: Mapping[str, Any]) -> Finding:
    if info.get("aof_enabled"):
        return Finding("ok", "data survives a restart (appendonly yes)")
    return Finding(
        "info",
        "appendonly is off: values stored since the last snapshot are lost if the server stops, "
        "and tasks whose messages survive fail with BlobMissing",
        "set appendonly yes if the broker's messages survive a restart",
    )
