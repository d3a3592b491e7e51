"""Where bytes live: `open_store` and the protocols that a store keeps."""

from __future__ import annotations

from offload.stores.base import (
    PUT,
    BlobInfo,
    BlobStore,
    LeaseStore,
    Parts,
    PointerStore,
    Store,
    Swept,
)
from offload.stores.open import open_store, register_scheme

__all__ = (
    "PUT",
    "BlobInfo",
    "BlobStore",
    "LeaseStore",
    "Parts",
    "PointerStore",
    "Store",
    "Swept",
    "open_store",
    "register_scheme",
)
