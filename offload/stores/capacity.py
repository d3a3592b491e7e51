"""How much a store holds, and how much it may: asked of its server, not counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ("Capacity", "Measured")


@dataclass(frozen=True)
class Capacity:
    """What one server or folder says; None where it does not.

    Attributes:
        server: its name where a store has several, else "".
        kind: and version, as ``Valkey 9.0``.
        used: bytes, of all who use it.
        limit: bytes; None: there is no limit.
        policy: what a Redis drops when it is full.
        evicted: how many keys it has dropped so since it started.
        keys: in its database, also those of others.
    """

    server: str = ""
    kind: str = ""
    used: int | None = None
    limit: int | None = None
    policy: str = ""
    evicted: int | None = None
    keys: int | None = None


@runtime_checkable
class Measured(Protocol):
    """A store that knows. Stores need not."""

    def capacity(self) -> Iterator[Capacity]:
        """Ask each server. One round trip for each."""
