"""Where bytes live: `open_store` and the protocols that a store keeps."""

from __future__ import annotations

from offload.stores.base import BlobInfo, BlobStore, LeaseStore, Parts, PointerStore, Store
from offload.stores.open import open_store, register_scheme

__all__ = (
    "BlobInfo",
    "BlobStore",
    "LeaseStore",
    "Parts",
    "PointerStore",
    "Store",
    "open_store",
    "register_scheme",
)
