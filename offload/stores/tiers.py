"""The stores that a store is made of."""

from __future__ import annotations

from collections.abc import Sequence

from offload.stores.base import Store

__all__ = ("tiers_of",)


def tiers_of(store: Store) -> Sequence[Store]:
    """Return the tiers of *store*, the first of which has its pointers and leases; itself
    where it has none.
    """
    tiers: Sequence[Store] = getattr(store, "tiers", None) or (store,)
    return tiers
