"""What a look at a store or an app finds, for operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

__all__ = ("Diagnosed", "Finding", "Level", "clock_finding", "stray_findings")

Level = Literal["ok", "info", "warning", "error"]

_SHOWN = 5  # names of stray files
_CLOCK = 5.0  # seconds of difference that are worth a word


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``ok``; ``info``, worth knowing; ``warning``, will go wrong some day;
            ``error``, goes wrong now.
        what: one sentence for people.
        remedy: what to do, where there is something to do.
    """

    level: Level
    what: str
    remedy: str = ""


@runtime_checkable
class Diagnosed(Protocol):
    """A store that knows what can be wrong with its kind. Stores need not."""

    def diagnose(self, *, longest: float) -> Iterator[Finding]:
        """Look at the server and what it is set to; change nothing.

        *longest* is for how many seconds the app may ask to keep something; infinite where
        that is not limited. Raises StoreError where the server cannot be asked.
        """


def clock_finding(ahead: float) -> Finding:
    """Return what it means that the server's clock is *ahead* seconds before this machine's."""
    if abs(ahead) <= _CLOCK:
        return Finding("ok", "its clock and this machine's agree")
    which = "ahead of" if ahead > 0 else "behind"
    return Finding(
        "warning",
        f"its clock is {abs(ahead):.0f} s {which} this machine's; from minutes on, servers "
        "refuse requests, and references look older or younger than they are",
        "have both set by NTP",
    )


def stray_findings(names: Iterable[str], remedy: str) -> Iterator[Finding]:
    """Yield a finding if there are stray files in a store."""
    found = sorted(names)
    if found:
        shown = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
        count = "one file or folder" if len(found) == 1 else f"{len(found)} files or folders"
        yield Finding("info", f"{count} that aren't the store's are ignored: {shown}", remedy)
