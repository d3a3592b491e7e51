"""The stores that a store is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from offload.counters import Counters
from offload.stores.base import Store

__all__ = ("Tiered", "chunk_size_of", "tiers_of")


@runtime_checkable
class Tiered(Protocol):
    """A store that can tell its tiers apart."""

    def count_by_tier(self, counters: Counters) -> None:
        """Count from now on what each tier does."""


def tiers_of(store: Store) -> Sequence[Store]:
    """Return the tiers of *store*, the first of which has its pointers and leases; itself
    where it has none.
    """
    tiers: Sequence[Store] = getattr(store, "tiers", None) or (store,)
    return tiers


def chunk_size_of(store: Store) -> int | None:
    """Return the bytes that no chunk in *store* may exceed; None where nothing is set."""
    limits = [getattr(tier, "chunk_size", None) for tier in tiers_of(store)]
    return min((limit for limit in limits if limit), default=None)
