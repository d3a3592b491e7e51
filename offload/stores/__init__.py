"""Stores: `open_store`, and the protocols that every store implements."""

from __future__ import annotations

from offload.stores.open import open_store, register_scheme
from offload.stores.protocols import (
    PUT,
    BlobInfo,
    BlobStore,
    LeaseStore,
    Parts,
    PointerStore,
    Store,
    SweepItem,
)

__all__ = (
    "PUT",
    "BlobInfo",
    "BlobStore",
    "LeaseStore",
    "Parts",
    "PointerStore",
    "Store",
    "SweepItem",
    "open_store",
    "register_scheme",
)
