"""Check file systems and Redis servers; findings shared by several kinds of stores."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from re import Pattern
from typing import Any

from offload.errors import StoreError
from offload.inspect import Finding
from offload.stores.bases import BLOB_NAME
from offload.stores.capabilities import SMALL_FILE
from offload.stores.file.blobs import STRIPE
from offload.stores.file.disk import ASIDE, Disk
from offload.stores.file.store import RECORD
from offload.stores.fsspec.blobs import CLOCK
from offload.stores.fsspec.store import FsspecStore
from offload.stores.redis.client import RedisClient
from offload.stores.redis.driver_errors import is_denied
from offload.text import human_size

_SHOWN = 5  # stray files to name
_CLOCK = 5.0  # seconds; a larger clock difference is worth a warning


@dataclass(frozen=True)
class Capacity:
    """Used and available space of a server or file system; None if unknown.

    Attributes:
        server: the server's name if the store has several, else "".
        kind: software and version, such as ``Valkey 9.0``.
        used: bytes in use, by all users.
        limit: maximum bytes; None also if unlimited.
        policy: a Redis server's eviction policy; "" for others.
        evicted: number of keys evicted since the server started.
        keys: number of keys in the database, including those of other users.
    """

    server: str = ""
    kind: str = ""
    used: int | None = None
    limit: int | None = None
    policy: str = ""
    evicted: int | None = None
    keys: int | None = None


def clock_finding(ahead: float) -> Finding:
    """Return a finding on a server's clock that is *ahead* seconds ahead of this machine's."""
    if abs(ahead) <= _CLOCK:
        return Finding("ok", "its clock and this machine's agree")
    which = "ahead of" if ahead > 0 else "behind"
    return Finding(
        "warning",
        f"its clock is {abs(ahead):.0f} s {which} this machine's; with a difference of minutes, "
        "servers refuse requests, and references look older or younger than they are",
        "synchronize both with NTP",
    )


def stray_findings(names: Iterable[str], remedy: str) -> Iterator[Finding]:
    """Yield a finding if there are any *names*, those of stray files in a store."""
    found = sorted(names)
    if found:
        shown = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
        count = "one file or folder" if len(found) == 1 else f"{len(found)} files or folders"
        yield Finding("info", f"{count} that don't belong to the store: {shown}", remedy)


_LAYOUT = {
    "blobs": (STRIPE, BLOB_NAME),
    "kept": (STRIPE, BLOB_NAME),
    "pointers": (STRIPE, RECORD),
    "leases": (STRIPE, RECORD),
    "locks": (STRIPE,),
    "stats": (SMALL_FILE,),
    "tmp": (ASIDE,),
}
_LITTLE = 0.05  # share of the file system; less free space is worth a warning


def diagnose_files(disk: Disk) -> Iterator[Finding]:
    """Check the free space, and look for stray files."""
    with disk.errors():
        yield from check_space(disk.root)
    with disk.errors():
        names = [str(path.relative_to(disk.root)) for path in strays(disk)]
    yield from stray_findings(
        names, "keep file managers, thumbnails, and backups out of the folder"
    )


def strays(disk: Disk) -> Iterator[Path]:
    """Yield files and folders in the store's folder that don't belong to it."""
    for entry in disk.entries(disk.root):
        path = Path(entry.path)
        if entry.name in _LAYOUT and entry.is_dir():
            yield from _strays(disk, path, _LAYOUT[entry.name])
        else:
            yield path


def _strays(disk: Disk, folder: Path, levels: Sequence[Pattern[str]]) -> Iterator[Path]:
    name, *below = levels
    for entry in disk.entries(folder):
        if not name.fullmatch(entry.name) or not (entry.is_dir() if below else entry.is_file()):
            yield Path(entry.path)
        elif below:
            yield from _strays(disk, Path(entry.path), below)


def check_space(path: Path) -> Iterator[Finding]:
    """Check the free space in the file system of *path*, for this user. Raises OSError."""
    free, whole = _room(path)
    shown = f"{human_size(free)} of {human_size(whole)} free"
    if free < whole * _LITTLE:
        yield Finding(
            "warning",
            f"{shown}: publishing fails when the disk is full",
            "free some space; run `celery offload gc` more often, or lower offload_retention",
        )
    else:
        yield Finding("ok", shown)


def folder_capacity(path: Path) -> Iterator[Capacity]:
    """Yield the used and total space of the file system of *path*. Raises OSError."""
    free, whole = _room(path)
    yield Capacity(kind="file system", used=whole - free, limit=whole)


def _room(path: Path) -> tuple[int, int]:
    """Return the bytes that are free for this user, and the total."""
    there = next(each for each in (path, *path.parents) if each.exists())
    system = os.statvfs(there)  # the first write creates the path itself
    return system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize


def diagnose_fsspec(store: FsspecStore) -> Iterator[Finding]:
    """Report stray files."""
    names = store.blobs.folder.names()
    own = (name for name in names if BLOB_NAME.fullmatch(name) or CLOCK.fullmatch(name))
    strays = [f"blobs/{name}" for name in set(names).difference(own)]
    yield from stray_findings(
        [*strays, *store.files.strays()], "keep other files out of the folder"
    )


OLDEST = (6, 2)
"""Minimum Redis version: the first with ``ZADD GT``, which the scripts use."""
_FULL = 0.9  # share of maxmemory; more is worth a warning


def diagnose_redis(client: RedisClient) -> Iterator[Finding]:
    """Check each server; of a Cluster, each primary."""
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
            "the store's user may not run INFO, so version, memory, eviction, and persistence "
            "weren't checked",
            "grant the user +info to check them; nothing else needs it",
        )
    sent = time.time()
    for name, (seconds, micros) in client.each_server("TIME"):
        ahead = int(seconds) + int(micros) / 1e6 - (sent + time.time()) / 2
        finding = clock_finding(ahead)
        yield Finding(finding.level, f"{name}: {finding.what}" if name else finding.what)
        sent = time.time()


def redis_capacity(client: RedisClient) -> Iterator[Capacity]:
    """Yield the capacity of each server; nothing if INFO is denied."""
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
    space = info.get(f"db{database}", {"keys": 0})  # INFO omits empty databases
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
        "set maxmemory-policy noeviction; if others use the server as a cache, give offload a "
        "server of its own",
    )


def _memory(info: Mapping[str, Any]) -> Finding:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most:
        return Finding(
            "info",
            f"maxmemory is not set; {human_size(used)} used",
            "set maxmemory below the machine's memory: publishing to a full server then fails with "
            "StoreUnavailable, and the server isn't killed",
        )
    shown = f"{human_size(used)} of {human_size(most)} (maxmemory) used"
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
            f"it has replicas ({connected}), but no write waits for them: a failover loses recent "
            "writes, and tasks that need them fail with BlobMissing",
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
        "appendonly is off: if the server stops, values stored since the last snapshot are lost, "
        "and tasks that need them fail with BlobMissing",
        "set appendonly yes if the broker's messages survive a restart",
    )
