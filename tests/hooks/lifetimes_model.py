"""Model of lifetimes: derive from messages alone who needs which value until when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np

from offload.stores import Store

HOUR = 3600.0
FOREVER = 100 * 365 * 24 * HOUR
RETENTION, GRACE, EXPIRES = 20 * HOUR, HOUR, 30 * HOUR
SLACK = 70.0
"""Seconds that the library adds for clock skew."""
MARGIN = 1.25
"""Factor on the lifetime of values that can't be released, so that passing them on is free."""


def _values() -> dict[str, Any]:
    """Return many values, so that most are needed by one holder only; large ones share all but a
    chunk.
    """
    shared = np.arange(30_000, dtype=np.uint8)
    found: dict[str, Any] = {"other": shared[::-1]}
    for n in range(4):
        changed = shared.copy()
        changed[-1] = n
        found[f"large {n}"] = changed
        found[f"small {n}"] = list(range(n, 900))
    return found


VALUES = _values()


@dataclass
class Setup:
    """One kind of store to test.

    Attributes:
        store: an empty store.
        advance: moves its clock by seconds; None if that is impossible.
        remains: returns what is left in it, except pointers and leases.
        skew: seconds by which its content lives longer.
    """

    store: Store
    advance: Callable[[float], None] | None
    remains: Callable[[], list[str]]
    skew: float = 0.0


@dataclass
class Sent:
    """A message that a broker may deliver once or twice.

    Attributes:
        holder: its name as a holder; a message that is resent in an outage keeps it.
        key: key of the value that its task receives.
        carried: keys of all values that it holds, also for its callbacks, chain, and chord.
        until: when its values may expire if it is not done by then.
        again: whether it is resent in an outage by a delivery that wasn't the first.
    """

    message: Any
    holder: str
    key: str
    carried: list[str]
    until: float
    expires: bool
    is_part: bool
    again: bool = False
    runs: int = 0

    @property
    def may_be_released(self) -> bool:
        """Whether an earlier delivery may have released its values, so that a worker holds them
        as soon as the task starts.
        """
        return self.again or self.runs > 1


@dataclass
class Model:
    """Model of who needs which blobs until when, and until when anything may be stored."""

    now: float = 0.0
    needs: dict[tuple[str, str], float] = field(default_factory=dict)
    graces: dict[str, float] = field(default_factory=dict)
    ages: dict[str, float] = field(default_factory=dict)

    def hold(self, holder: str, digests: list[str], seconds: float) -> None:
        for digest in digests:
            until = max(self.needs.get((holder, digest), 0.0), self.now + seconds)
            self.needs[holder, digest] = until
            age = max(self.ages.get(digest, 0.0), self.now + seconds * MARGIN)
            self.ages[digest] = age

    def release(self, holder: str, digests: list[str]) -> None:
        for digest in digests:
            until = self.needs.pop((holder, digest), 0.0)
            if until > self.now:
                end = min(until, self.now + GRACE)
                self.graces[digest] = max(self.graces.get(digest, 0.0), end)

    def left(self, digest: str) -> float:
        """Return for how many more seconds a blob is needed."""
        ends = (end for (_, held), end in self.needs.items() if held == digest)
        return max([self.graces.get(digest, 0.0), *ends]) - self.now

    def needed(self) -> set[str]:
        """Return the blobs that are needed now."""
        held = {digest for (_, digest), end in self.needs.items() if end > self.now}
        return held | {digest for digest, end in self.graces.items() if end > self.now}


def carried_by(node: Any) -> Iterator[str]:
    """Yield the keys of the values in all signatures in *node*."""
    if isinstance(node, dict) and str(node.get("task", "")).startswith("work"):
        yield node["args"][0]
        node = node["options"]
    if isinstance(node, (dict, list)):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from carried_by(inner)


def same(value: Any, key: str) -> bool:
    return type(value) is type(VALUES[key]) and bool(np.array_equal(value, VALUES[key]))


def seconds_until(when: str | None) -> float:
    if not when:
        return 0.0
    return (datetime.fromisoformat(when) - datetime.now(timezone.utc)).total_seconds()
