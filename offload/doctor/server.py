"""Findings and capacity, shared by the checks of several kinds of stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from offload.inspect.findings import Finding

__all__ = ("Capacity", "clock_finding", "stray_findings")

_SHOWN = 5  # names of stray files
_CLOCK = 5.0  # seconds of difference worth a warning


@dataclass(frozen=True)
class Capacity:
    """Used and available space of a server or file system; None if unknown.

    Attributes:
        server: its name if a store has several, else "".
        kind: and version, as ``Valkey 9.0``.
        used: bytes used by everyone.
        limit: bytes; None: unlimited.
        policy: a Redis server's eviction policy.
        evicted: keys evicted since it started.
        keys: keys in its database, including those of others.
    """

    server: str = ""
    kind: str = ""
    used: int | None = None
    limit: int | None = None
    policy: str = ""
    evicted: int | None = None
    keys: int | None = None


def clock_finding(ahead: float) -> Finding:
    """Judge a server's clock that is *ahead* seconds before this machine's."""
    if abs(ahead) <= _CLOCK:
        return Finding("ok", "its clock and this machine's agree")
    which = "ahead of" if ahead > 0 else "behind"
    return Finding(
        "warning",
        f"its clock is {abs(ahead):.0f} s {which} this machine's; if it is minutes, servers "
        "refuse requests, and references look older or younger than they are",
        "synchronize both with NTP",
    )


def stray_findings(names: Iterable[str], remedy: str) -> Iterator[Finding]:
    """Yield a finding if *names*, the stray files in a store, aren't empty."""
    found = sorted(names)
    if found:
        shown = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
        count = "one file or folder" if len(found) == 1 else f"{len(found)} files or folders"
        yield Finding("info", f"{count} that aren't the store's are ignored: {shown}", remedy)
